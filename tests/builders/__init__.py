"""What several test files make their cases of: folders, ONNX models, specs, weights, commands."""
