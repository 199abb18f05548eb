"""The machine: device, processes, dtype, threads, clocks. The only reader of the environment outside cli."""

import ctypes
import math
import os
import platform
import resource
import shutil
import sys
import time
import timeit
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist

from nlpstack import __version__
from nlpstack.errors import ConfigError, NlpstackError, TrainingError
from nlpstack.signals import Stopped

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # without which cuBLAS may add up in another order

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Dense bf16 peaks in FLOP/s as their maker states them; other devices are measured.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
# FLOP/s that training reaches at about, to tell how long a run will be; estimates (benchmarks/RESULTS.md).
_USUAL_FLOPS = {("cpu", "bf16"): 2e11, ("cpu", "fp32"): 8e10, ("cuda", "bf16"): 3e14, ("cuda", "fp32"): 3e13}
# Seconds a run must last to repay being compiled (benchmarks/RESULTS.md); of a GPU a guess.
_COMPILE_FROM = {"cpu": 300.0, "cuda": 120.0}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Everything that changes arithmetic, made once at step 0, written to the run and kept by --resume."""

    steps: int
    device: str
    dtype: str
    compile: bool
    threads: int
    micro_batch: int  # sequences
    attention: str  # in training: "plain" products or the "fused" kernel
    loss_chunk: int  # rows whose logits are held at a time
    deterministic: bool
    processor: str
    torch: str
    nlpstack: str
    world: int = 1  # processes

    def __str__(self) -> str:
        shown = ("device", "dtype", "compile", "threads", "attention", "micro_batch")
        return "  ".join(f"{name} {getattr(self, name)}" for name in shown)

    def unkept(self) -> list[str]:
        """What this machine cannot keep of choices made elsewhere, as `name: then, now`."""
        now: dict[str, Any] = {"processor": processor_name(self.device), "torch": torch.__version__}
        now |= {"nlpstack": __version__, "world": world_size()}
        if self.compile and not can_compile(self.device):
            now["compile"] = "no compiler"
        then = asdict(self)
        return [f"{name}: then {then[name]}, now {value}" for name, value in now.items() if then[name] != value]


def rank() -> int:
    """The number of this process among those that torchrun started together; 0: the one that writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(value: Any) -> list[Any]:
    """What each process has here, in order of their numbers; they wait for one another."""
    found = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(found, value, group=_patient())
    return found


@cache
def _patient() -> Any:
    """All processes as a group that waits for as long as the first one of them takes to tokenize a corpus."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=7))


def summed(values: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """Each of these numbers, added up over all processes."""
    total = torch.as_tensor(values)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


@contextmanager
def joined() -> Iterator[None]:
    """Inside the block this is one of the processes that torchrun started; only the command line does this.

    The first alone speaks. Of those that fail, whichever is the first to fail says why.
    """
    if on_gpu := torch.cuda.is_available():
        if (asked := int(os.environ["LOCAL_WORLD_SIZE"])) > (there := torch.cuda.device_count()):
            fault = f"torchrun: {asked} processes on a machine with {there} GPUs; give --nproc-per-node {there} at most"
            raise SystemExit(2) if int(os.environ["LOCAL_RANK"]) else ConfigError(fault)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")  # whatever stands on the CPU goes by gloo
    own = rank()
    try:
        with ExitStack() as silent:
            for redirect in (redirect_stdout, redirect_stderr) if own else ():
                silent.enter_context(redirect(silent.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            yield
    except Stopped as stopped:
        if own:
            raise SystemExit(128 + stopped.signum) from None
        raise
    except Exception as error:
        time.sleep(own > 0)  # what all of them stumble over is the first one's to tell
        if dist.distributed_c10d._get_default_store().add("nlpstack/failed", 1) > 1:
            raise SystemExit(1) from error
        if isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL", "Connection")):
            raise TrainingError("another process ended, killed perhaps; start again, a run with --resume") from error
        if own and isinstance(error, NlpstackError):
            raise type(error)(f"process {own}: {error}") from error
        raise
    dist.destroy_process_group()


def resolve_device(name: str) -> torch.device:
    """The device of a name; `auto` takes a GPU where there is one. ConfigError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch finds no CUDA device here; use --device cpu or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: torch finds no Apple GPU here; use --device cpu or auto")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies it faster than fp32, and fp32 elsewhere."""
    if name == "auto":
        return "bf16" if fast_bf16(device) else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("dtype=fp16: on a CPU it is neither faster nor safe; use bf16 or fp32")
    return name


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products beat fp32: CUDA capability 8.0 up, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))
    return False


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """Products in `dtype` over fp32 weights."""
    return torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "fp32")


def can_compile(device_type: str) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler on CPUs, Triton on GPUs."""
    if device_type == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++"))
    if device_type == "cuda":
        return find_spec("triton") is not None and any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    return False


def compile_pays(device_type: str, dtype: str, *, minutes: float | None, flops: float) -> bool:
    """Whether a run of so many minutes, or else FLOPs, is long enough to repay compiling, by a fixed rule."""
    usual = _USUAL_FLOPS.get((device_type, dtype if dtype == "fp32" else "bf16"), math.inf)
    return (flops / usual if minutes is None else minutes * 60) >= _COMPILE_FROM.get(device_type, math.inf)


def processor_name(device_type: str) -> str:
    """The model of the processor that computes, since another rounds otherwise."""
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = [line.partition(":") for line in file]
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, _, value in reversed(fields)}
    parts = [found.get("model name", platform.machine()), found.get("cpu family"), found.get("model")]
    return "/".join(part for part in parts if part)


@contextmanager
def session(*, threads: int | None, deterministic: bool = False) -> Iterator[None]:
    """Set what is set for a whole process, and put it back afterwards; without `threads` as many as now compute.

    `deterministic` costs speed on a GPU, nothing on a CPU, where compiled code adds gradients up as threads arrive.
    """
    fill: Any = torch.utils.deterministic
    with ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        undo.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        undo.callback(setattr, fill, "fill_uninitialized_memory", fill.fill_uninitialized_memory)
        undo.callback(os.environ.update, {name: os.environ[name] for name in (_WORKSPACE,) if name in os.environ})
        undo.callback(os.environ.pop, _WORKSPACE, None)
        torch.set_num_threads(threads or torch.get_num_threads())
        if deterministic:
            os.environ[_WORKSPACE] = ":4096:8"
            torch.use_deterministic_algorithms(True)
            fill.fill_uninitialized_memory = False
        yield


def keep_freed_memory() -> None:
    """Let glibc, if there is one, keep freed tensors' memory and not map it anew at every step; no result changes."""
    # For the whole process, so only the command line calls it.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def rng_state(device: torch.device) -> dict[str, str]:
    """The state of the global generators, as hexadecimal text."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: state.numpy().tobytes().hex() for name, state in states.items()}


def set_rng_state(state: dict[str, str], device: torch.device) -> None:
    """Put the global generators where `rng_state` found them."""
    states = {name: torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8) for name, text in state.items()}
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_flops(device: torch.device, dtype: str) -> tuple[float, str]:
    """FLOP/s that the utilisation in the log is measured against, and where the number comes from."""
    if device.type == "cuda" and dtype != "fp32":
        name = torch.cuda.get_device_name(device)
        for key, value in _PEAKS.items():
            if key in name:
                return value, "its maker's figure"
    n = 1024 if device.type == "cpu" else 8192
    a = torch.ones(n, n, dtype=DTYPES[dtype], device=device)
    fastest = min(timeit.repeat(lambda: float((a @ a)[0, 0]), number=1, repeat=4))  # float waits for the device
    return 2 * n**3 / fastest, f"a {n} x {n} product measured now"
