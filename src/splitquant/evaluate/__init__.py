"""Evaluation: what a model, float or quantized, still can do; every figure with its standard error.

Importing this package loads no framework: `torch` and `transformers` are asked for where a model is opened.

Example:
    >>> from splitquant.evaluate import open_language_model, divergence  # doctest: +SKIP
    >>> divergence(open_language_model("SRC"), open_language_model("DST"), text).kl  # doctest: +SKIP
"""

from splitquant.evaluate.choices import Answer, Choices, choices
from splitquant.evaluate.divergence import Divergence, KeptReference, divergence
from splitquant.evaluate.embeddings import Embeddings, Encoder, embeddings, open_encoder
from splitquant.evaluate.harness import TaskResults, lm_eval_tasks
from splitquant.evaluate.images import Classifier, Images, Labelled, images, of_module, open_classifier, read_images
from splitquant.evaluate.job import Asked, Evaluation, evaluate
from splitquant.evaluate.model import LanguageModel, open_language_model
from splitquant.evaluate.pairs import PairedAnswers, paired_answers, paired_images
from splitquant.evaluate.perplexity import Perplexity, perplexity
from splitquant.evaluate.questions import Question, read_questions
from splitquant.evaluate.run import Run
from splitquant.evaluate.statistics import Estimate
from splitquant.evaluate.texts import read_text

__all__ = [
    "Answer",
    "Asked",
    "Choices",
    "Classifier",
    "Divergence",
    "Embeddings",
    "Encoder",
    "Estimate",
    "Evaluation",
    "Images",
    "KeptReference",
    "Labelled",
    "LanguageModel",
    "PairedAnswers",
    "Perplexity",
    "Question",
    "Run",
    "TaskResults",
    "choices",
    "divergence",
    "embeddings",
    "evaluate",
    "images",
    "lm_eval_tasks",
    "of_module",
    "open_classifier",
    "open_encoder",
    "open_language_model",
    "paired_answers",
    "paired_images",
    "perplexity",
    "read_images",
    "read_questions",
    "read_text",
]
