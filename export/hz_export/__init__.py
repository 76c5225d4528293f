"""From checkpoints to a verified bundle: ONNX, precision, parity, assembly.

    to_onnx          checkpoint -> network -> float32 ONNX graph
    graph_precision  float32 graph -> float16 or bfloat16 graph
    graph_report     what a graph really computes in
    engine           ONNX file -> TensorRT engine, on either TensorRT
    quantize         float32 graph -> INT8 graph, by a precision plan
    localize         which nodes make a reduced graph stray
    engine_report    what an engine really computes in
    bench, speed     how fast they are, in turns: candidates and torch_baselines
    parity           how far the files stray from the network they came from, on real volumes
    onnx_files       a network's graphs, each with its parity
    model_card       MODEL_CARD.md from a checkpoint's own numbers, with the items of reporting guidelines
    assemble         all of it together, published atomically

Importing this package imports neither torch nor onnx.
"""
