"""Make a student smaller and ship it: trim its vocabulary, export it to ONNX."""
