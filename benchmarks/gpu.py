"""What the engine does on a GPU: its kernels, right or not and beside the roofline, and its start, latency and rate.

`python -m benchmarks.gpu` prints a table and writes results/gpu.json. The kernels need torch, triton, numpy and
msgspec; the engine needs what its extra of the package names, and where some of that is not there the result says so
and has the kernels' figures alone. Weights are random, of Llama 3.1 8B's shape. `--tiny` goes through all of it with
small sizes, on a CPU by Triton's interpreter: then times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, write_result


def main() -> None:
    """Measure, print and write. Exits with 1 where a kernel is wrong or the engine fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, also without a GPU")
    parser.add_argument("--kernels-only", action="store_true", help="without the engine")
    parser.add_argument("--output", type=Path, help="where the JSON goes; results/gpu.json if not given")
    options = parser.parse_args()
    started = time.monotonic()

    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        if not options.tiny:
            parser.error("torch finds no GPU: --tiny goes through the same without one")
        os.environ["TRITON_INTERPRET"] = "1"
    machine = describe_machine() | {"device": _name_of(device), "torch": torch.__version__}
    with torch.inference_mode():
        figures = _kernels(device, tiny=options.tiny)
    if not options.kernels_only:
        figures["engine"] = _engine(device, figures["roofline"], tiny=options.tiny)
    figures["seconds"] = round(time.monotonic() - started, 1)
    if options.output is None:
        print(f"written to {write_result('gpu', figures, machine)}")
    else:
        options.output.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")
    wrong = [name for name, of_case in figures["kernels"].items() if not of_case.get("right")]
    failed = figures.get("engine", {}).get("failed")
    if wrong or failed:
        raise SystemExit(f"wrong: {', '.join(wrong) or 'no kernel'}; engine: {failed or 'ran'}")


def _kernels(device: Any, *, tiny: bool) -> dict[str, Any]:
    """One that fails is written down, and the others go on."""
    import torch

    from benchmarks.gpu_kernels import cases, figures_of, measure_roofline
    from quire_engine.kernels import choice

    choice.interpreted_on_cpu = device.type == "cpu"
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    roofline = measure_roofline(device, dtype, tiny=tiny)
    print(f"measured: {roofline.bandwidth / 1e12:.2f} TB/s, {roofline.flops / 1e12:.0f} TFLOP/s")
    print(f"{'kernel':<36}{'us':>12}{'torch, us':>12}{'of roofline':>12}  right")
    found: dict[str, Any] = {}
    for case in cases(device, dtype, tiny=tiny):
        try:
            figures = figures_of(case, roofline, device)
        except Exception as error:  # noqa: BLE001  # whatever a compiler or a driver has to say: the rest is measured
            figures = {"right": False, "failed": f"{type(error).__name__}: {error}"[:500]}
            print(f"{case.name:<36}{figures['failed']}")
        else:
            share = figures["share_of_roofline"]
            print(f"{case.name:<36}{figures['us']:>12}{figures['torch_us']:>12}{share:>12}  {figures['right']}")
        found[case.name] = figures
    return {"roofline": {"bytes_per_s": roofline.bandwidth, "flops_per_s": roofline.flops}, "kernels": found}


def _engine(device: Any, roofline: dict[str, float], *, tiny: bool) -> dict[str, Any]:
    """Also what keeps it from running, so that the kernels' figures are kept."""
    try:
        from benchmarks.gpu_engine import engine_figures
        from benchmarks.gpu_kernels import Roofline

        measured = Roofline(roofline["bytes_per_s"], roofline["flops_per_s"])
        figures = engine_figures(device.type, measured, tiny=tiny)
    except Exception as error:  # noqa: BLE001  # a package that is not there, memory, a kernel
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    for name, of_case in figures.items():
        print(f"{name:<36}{of_case}")
    return figures


def _name_of(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, by Triton's interpreter"


if __name__ == "__main__":
    main()
