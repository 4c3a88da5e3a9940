"""Which arithmetic a device is fast in."""

from __future__ import annotations

import torch


def full_float32() -> None:
    """Have convolutions in float32 keep all their bits in this process: on a GPU they would take TF32, of ten bits."""
    torch.backends.cudnn.allow_tf32 = False


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware on `device`. Elsewhere they are emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
