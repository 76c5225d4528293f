"""From checkpoints to a verified bundle: ONNX, precision, parity, assembly.

    to_onnx          checkpoint -> network -> float32 ONNX graph
    graph_precision  float32 graph -> float16 graph, and what a graph really computes in
    parity           how far the files stray from the network they came from, on real volumes
    model_card       MODEL_CARD.md from a checkpoint's own numbers
    assemble         all of it together, published atomically

Importing this package imports neither torch nor onnx.
"""
