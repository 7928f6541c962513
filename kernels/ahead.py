"""Every Triton kernel as it is launched on SD1.5 and SDXL, compiled ahead of time for a device that need not be there:

    python -m studio.kernels.ahead [--json]

tells registers, spilled bytes and shared memory of each, and exits with 1 where one spills.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from studio.kernels import attention_columns_triton as columns
from studio.kernels.blend_triton import BLEND, blend_kernel
from studio.kernels.kronecker_triton import KRONECKER, kronecker_kernel
from studio.kernels.triton_support import accumulator, power_of_two, triton
from studio.kernels.widen_triton import blocks, widen_kernel

ARCHITECTURES = (80, 90)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
HEADS = {"SD1.5": ((8, 40), (8, 80), (8, 160)), "SDXL": ((10, 64), (20, 64))}  # (heads, width of each), by level
_EXACT = ("total", "mass", "d_mass", "d_chosen", "weights")
_SCALARS = ("scale", "guidance")
_OWN_STRIDES = re.compile(r"(q_h|k_h|v_h|o_h|d_h|[qkvod]_[bnm]|x_t|wide_t|K)$")  # multiples of 16


@dataclass(frozen=True)
class Launch:
    """A kernel with its constants; `what` tells launches of one kernel apart."""

    name: str
    what: str
    kernel: Any
    constants: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What became of a launch: registers a thread, bytes that did not fit, bytes of shared memory a program."""

    name: str
    what: str
    dtype: str
    architecture: int
    registers: int
    spilled: int
    shared: int


def launches(dtype: torch.dtype) -> Iterator[Launch]:
    """Of inputs of `dtype`: a text of 77 words, up to 16 columns, five adapters of rank 16, two to six branches."""
    acc = accumulator(dtype)
    for family, levels in HEADS.items():
        for heads, width in levels:
            common = {"H": heads, "D": width, "ACC": acc, "BLOCK_C": 16, "BLOCK_D": power_of_two(width)}
            what = f"{family}, {heads} heads of {width}"
            yield Launch("mass", what, columns.mass_kernel, common | columns.MASS)
            if power_of_two(width) > columns.WIDEST:
                continue
            for each in (heads, 1):
                given = common | {"HEADS": each, "BLOCK_M": 128} | columns.FORWARD
                yield Launch("columns", f"{what}, {each} a program", columns.forward_kernel, given)
            yield Launch("columns, dq", what, columns.d_query_kernel, common | {"BLOCK_M": 128} | columns.D_QUERY)
            yield Launch("columns, dk dv", what, columns.d_text_kernel, common | columns.D_TEXT)
    for layers, rows in ((1, 16), (1, 80), (1, 128), (1, 256), (3, 16), (3, 80)):
        given = {"L": layers, "R": rows, "ACC": acc} | blocks(layers, rows)
        yield Launch("widen", f"{layers} layers, {rows} rows", widen_kernel, given)
    for branches in range(2, 7):
        given = {"S": branches, "TWO": True, "ACC": acc}
        yield Launch("blend", f"{branches} branches", blend_kernel, given | BLEND)
    yield Launch("kronecker", "", kronecker_kernel, {"ACC": acc} | KRONECKER)


def compile_for(launch: Launch, dtype: str, architecture: int) -> Compiled:
    """`launch` for inputs of `dtype` ("bf16", "fp16") on sm_80 or sm_90."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    constants = {name: launch.constants[name] for name in names if name in launch.constants}
    kinds = {name: _kind(name, launch.name, constants, dtype) for name in names}
    divisible = [name for name in names if kinds[name].startswith("*") or _OWN_STRIDES.match(name)]
    source = ASTSource(
        fn=launch.kernel,
        signature=kinds,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    options = {name: launch.constants[name] for name in ("num_warps", "num_stages") if name in launch.constants}
    made: Any = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    registers, spilled = _resources(made.asm["ptx"], architecture)
    return Compiled(launch.name, launch.what, dtype, architecture, registers, spilled, made.metadata.shared)


def _kind(name: str, kernel: str, constants: dict[str, Any], dtype: str) -> str:
    if name in constants:
        return "constexpr"
    if name in _SCALARS:
        return "fp32"
    pointers = (*_EXACT, "query", "key", "value", "chosen", "out", "d_out", "d_query", "d_key", "d_value",
                "x", "down", "gate", "wide", "predictions", "a", "b")  # fmt: skip
    if name not in pointers:
        return "i32"
    return "*fp32" if name in _EXACT else f"*{dtype}"


def _resources(ptx: str, architecture: int) -> tuple[int, int]:
    """Registers and spilled bytes, as the assembler tells them."""
    from triton.backends.nvidia.compiler import get_ptxas

    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx, encoding="utf-8")
        target = f"sm_{architecture}{'a' if architecture == 90 else ''}"
        order = [get_ptxas(architecture).path, "-v", f"--gpu-name={target}", str(file), "-o", os.devnull]
        told = subprocess.run(order, capture_output=True, text=True, check=True).stderr
    numbers = re.search(r"Used (\d+) registers", told), re.search(r"(\d+) bytes spill stores", told)
    assert numbers[0] is not None
    assert numbers[1] is not None
    return int(numbers[0][1]), int(numbers[1][1])


def main(as_json: bool, every: int = 1) -> int:
    """Compile everything, or one in `every`, and tell it; the exit code."""
    if triton is None:
        print(
            "Triton is not installed: it comes with CUDA builds of torch, and with pip install 'concept-studio[test]'."
        )
        return 1
    all_of_them = [
        (launch, name, architecture)
        for name, dtype in DTYPES.items()
        for launch in launches(dtype)
        for architecture in ARCHITECTURES
    ]
    found = [compile_for(*one) for one in all_of_them[::every]]
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        for one in found:
            print(f"sm_{one.architecture} {one.dtype} {one.name:15} {one.what:32} {one.registers:4} registers,"
                  f" {one.spilled:5} spilled, {one.shared:7} shared")  # fmt: skip
    return int(any(one.spilled for one in found))


if __name__ == "__main__":
    sys.exit(main("--json" in sys.argv[1:]))
