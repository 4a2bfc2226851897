"""A demo of a student as a static page: the ONNX file runs in the browser with onnxruntime-web."""
