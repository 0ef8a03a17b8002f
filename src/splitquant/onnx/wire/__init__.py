"""The bytes of ONNX files: read without their weights, checked as hostile, written with room for weights, complete or not."""
