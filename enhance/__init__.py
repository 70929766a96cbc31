"""From noisy to enhanced audio: windows, files, streaming, runtimes and ONNX export."""
