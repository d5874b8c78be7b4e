"""Split two matrices unevenly over two devices, look at the plan, run, and compare with one device."""

import numpy as np

import pyggml as gg

rng = np.random.default_rng(0)
meta = gg.MetaDevice(
    gg.virtual_cpus(2),  # or gg.devices("CUDA"), gg.rpc("10.0.0.2:50052"), or unlike ones together
    rules=[
        gg.rule("ffn_up", "S1 3:1"),  # along ggml's axis 1, three quarters on the first device
        gg.rule("ffn_down", "S0 3:1"),  # along axis 0; other shares than ffn_up's would be an error that says so
    ],  # everything else: "M", mirrored
)
weights = gg.Weights(
    meta,
    {
        "ffn_up": gg.quantize(rng.standard_normal((256, 64)), "q8_0"),
        "ffn_down": rng.standard_normal((64, 256)).astype(np.float32),
    },
)
with gg.Graph(meta) as g:
    x = g.input("x", ne=(64, 8))  # ggml's order; numpy sees (8, 64)
    g.output("y", weights["ffn_down"] @ (weights["ffn_up"] @ x).silu())
    print(g.plan())
    y = g.run(x=np.ones((8, 64), np.float32))["y"]
    print(gg.compare(g, on=gg.cpu()).check())
