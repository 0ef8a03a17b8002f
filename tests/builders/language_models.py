"""Tiny language models with a tokenizer of bytes, and questions for them: what is expected can be computed by hand."""

from __future__ import annotations


def byte_tokenizer(*, begins: bool, chat: bool = False):
    """A token per byte (ids 3 to 258); `begins`: whether texts begin with <s>, id 1."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    found = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    if begins:
        found.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<s>", eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )
    if chat:
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
    return tokenizer


def text_options(**more):
    """What tiny decoders have in common."""
    return {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3,
        **more,
    }


KINDS = {
    "llama": ("Llama", text_options(tie_word_embeddings=False)),
    "gemma2": ("Gemma2", text_options(head_dim=8, sliding_window=16, final_logit_softcapping=3.0)),
    "gemma3": ("Gemma3", text_options(head_dim=8, sliding_window=16, tie_word_embeddings=True)),
    "cohere": ("Cohere", text_options(logit_scale=0.25)),
    "granite": ("Granite", text_options(logits_scaling=4.0)),
    "mixtral": ("Mixtral", text_options(num_local_experts=3)),
    "gpt2": ("GPT2", {"vocab_size": 259, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "opt": (
        "OPT",
        {
            "vocab_size": 259,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 16,
            "init_std": 0.3,
        },
    ),
}


def build(kind: str, seed: int = 0):
    """A model with random weights, large enough that its logits differ."""
    import torch
    import transformers

    name, options = KINDS[kind]
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(**options)
    classes = {"GPT2": "GPT2LMHeadModel"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, classes.get(name, f"{name}ForCausalLM"))(config).eval()


def direct(model, context, answer):
    """ln p of an answer from the model's own logits."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([[*context, *answer]])).logits[0].double().log_softmax(-1)
    return float(sum(logits[len(context) - 1 + i, token] for i, token in enumerate(answer)))


ARC = [
    {
        "id": f"q{number}",
        "question": stem,
        "choices": {"text": list(texts), "label": ["A", "B", "C", "D"][: len(texts)]},
        "answerKey": "ABCD"[number % len(texts)],
    }
    for number, (stem, texts) in enumerate(
        [
            ("What is wet?", ("fire", "water", "a rock of stone", "sand")),
            ("Which one sees?", ("an eye", "a toe", "ear")),
            ("Where do fish live?", ("in water", "on trees", "in the deep sea", "up")),
            ("What falls from clouds in winter?", ("snow", "x", "apples and pears", "light")),
            ("Who bakes bread?", ("a baker", "a smith", "the tailor of the town", "a cat")),
            ("Was ist größer?", ("Mäuse", "Öl", "Bär", "ein Haus")),
        ]
        * 4
    )
]
