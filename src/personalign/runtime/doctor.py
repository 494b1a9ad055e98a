"""What this machine has and lacks for running experiments, and what to do about it."""

from __future__ import annotations

import netrc
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from urllib.parse import urlparse

from packaging.specifiers import SpecifierSet

from personalign.runtime import provenance, threads
from personalign.runtime.logs import gpu_present, quiet

GIB = 2**30
MEMORY_NEEDED = 3 * GIB  # training the embedded model, batch 4 of 256 tokens, peaks at 2.9 GiB
DISK_NEEDED = 2 * GIB
WANDB = "https://api.wandb.ai"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `ok` is None where it is neither needed nor there; a remedy where it is not ok."""

    name: str
    ok: bool | None
    value: str
    remedy: str = ""


def checks(runs: Path, cache: Path) -> list[Check]:
    """Every check but the model's, which the policy package makes; the only one here that imports torch is `device`."""
    quiet()
    threads.configure()
    return [
        python(),
        packages(),
        device(),
        threading(),
        gpu(),
        memory(),
        disk("runs", runs, "paths.runs"),
        disk("cache", cache, "paths.cache or PERSONALIGN_CACHE"),
        compiler(),
        wandb(),
    ]


def python() -> Check:
    """The interpreter against the package's own bound."""
    try:
        wanted = metadata(provenance.PACKAGE)["Requires-Python"]
    except PackageNotFoundError:
        return Check("python", False, platform.python_version(), "install the package: pip install -e .")
    ok = platform.python_version() in SpecifierSet(wanted, prereleases=True)
    return Check("python", ok, platform.python_version(), "" if ok else f"make an environment with Python {wanted}")


def packages() -> Check:
    """Installed versions against the ranges that the package states."""
    wrong = []
    for one in provenance.requirements():
        found = provenance.installed(one.name)
        if found is None or not one.specifier.contains(found, prereleases=True):
            wrong.append((f"{one.name}{one.specifier}", f"{one.name} {found or 'missing'}"))
    if not wrong:
        return Check("packages", True, f"{len(provenance.requirements())} in the stated ranges")
    remedy = "pip install " + " ".join(f"'{wanted}'" for wanted, _ in wrong)
    return Check("packages", False, ", ".join(found for _, found in wrong), remedy)


def device() -> Check:
    """Where tensors live, and whether bf16 is computed by the hardware."""
    try:
        import torch
    except ImportError as error:
        return Check("device", False, f"torch cannot be imported: {error}", "pip install 'torch>=2.6'")
    if torch.cuda.is_available():
        return Check("device", True, f"{', '.join(provenance.gpus())}; torch {torch.__version__}")
    where = f"cpu, {provenance.cpu_model()}; torch {torch.__version__}"
    if bf16_instructions(Path("/proc/cpuinfo")):
        return Check("device", True, f"{where}; bf16 in hardware")
    return Check("device", None, f"{where}; bf16 is emulated", "precision=fp32 is likely faster on this processor")


def bf16_instructions(cpuinfo: Path) -> bool:
    """Whether the processor multiplies bf16 (AVX-512 BF16, AMX; BF16 of ARM)."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def threading() -> Check:
    """Whether torch took all cores, each thread on one of its own; asked after torch was imported."""
    cores = threads.usable()
    count = provenance.threads() or 1
    bound = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
    value = f"{count} on {len(cores)} cores, {'bound' if bound else 'not bound'}"
    if count != len(threads.limited(cores, threads.quota(threads.CGROUP))):
        return Check("threads", False, value, "unset OMP_NUM_THREADS (and MKL_NUM_THREADS), so that all cores are used")
    if count > 1 and not bound and not gpu_present():
        return Check(
            "threads", False, value, "unset OMP_PROC_BIND or set it to true: unbound threads can be far slower"
        )
    return Check("threads", True, value)


def gpu() -> Check:
    """Whether the GPU trainers can run."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return Check("gpu trainers", True, f"{torch.cuda.device_count()} GPU: gpu, ddp, zero2, zero3, zero3_offload")
    if gpu_present():
        remedy = "install the driver and a CUDA build of torch (https://pytorch.org/get-started)"
        return Check("gpu trainers", False, "there is a GPU that torch cannot use", remedy)
    return Check("gpu trainers", None, "no GPU", "use trainer=cpu, ddp_cpu or deepspeed_cpu")


def memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Memory that is free to use now."""
    try:
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free, total = (int(rows[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return Check("memory", None, "not known on this system", f"{MEMORY_NEEDED // GIB} GiB are needed to train")
    ok = free >= MEMORY_NEEDED
    remedy = "close other programs, or lower the batch sizes (decoding.batch_size and the stage's)"
    return Check("memory", ok, f"{free / GIB:.1f} of {total / GIB:.1f} GiB free", "" if ok else remedy)


def disk(name: str, folder: Path, setting: str) -> Check:
    """Whether a folder can be written, and how much room its disk has."""
    place = folder.expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        return Check(name, False, f"{folder}: cannot be written ({error.strerror})", f"choose another place: {setting}")
    free = shutil.disk_usage(place).free
    ok = free >= DISK_NEEDED
    remedy = f"free some space ({DISK_NEEDED // GIB} GiB are needed), or choose another place: {setting}"
    return Check(name, ok, f"{folder}: {free / GIB:.1f} GiB free", "" if ok else remedy)


def compiler() -> Check:
    """What DeepSpeed needs to build its CPU operator."""
    beside = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    cxx = os.environ.get("CXX", "c++")
    remedies = {cxx: "install a C++ compiler (apt install g++)", "ninja": "pip install ninja"}
    missing = [name for name in remedies if shutil.which(name, path=beside) is None]
    if not missing:
        return Check("compiler", True, " and ".join(remedies))
    remedy = " and ".join(remedies[name] for name in missing) + " for trainer=deepspeed_cpu"
    return Check("compiler", False, f"no {' and no '.join(missing)}", remedy)


def wandb() -> Check:
    """The mode that the environment asks of W&B, and whether a key is at hand; the key is never shown."""
    mode = os.environ.get("WANDB_MODE", "offline unless logger=wandb")
    if mode == "offline" or mode == "disabled":
        return Check("wandb", True, mode)
    if logged_in():
        return Check("wandb", True, f"{mode}; logged in")
    told = "for logger=wandb: `wandb login`; logger=wandb_offline needs no account"
    return Check("wandb", False if mode == "online" else None, f"{mode}; not logged in", told)


def logged_in() -> bool:
    """Whether W&B would find a key: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL", WANDB)).netloc
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
