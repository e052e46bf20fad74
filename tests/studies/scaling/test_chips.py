"""Which device has which figures."""

import types

import jax
import pytest

from studies.scaling import chips


@pytest.mark.parametrize(("kind", "name"), [
  ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("NVIDIA H100 80GB HBM3", "H100"),
  ("NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"), ("NVIDIA L4", "L4")])
def test_a_device_is_known_by_its_kind(kind, name):
  assert chips.of_device(types.SimpleNamespace(device_kind=kind)) is chips.CHIPS[name]


def test_an_unknown_device_is_measured(monkeypatch):
  """Fake CPU devices share a processor; several GPUs are as many times one."""
  monkeypatch.setattr(jax, "local_device_count", lambda: 4)
  monkeypatch.setattr(chips, "_seconds", lambda function, x: 0.5)
  cpu = chips.of_device(jax.devices()[0])
  gpu = chips.of_device(types.SimpleNamespace(
    device_kind="NVIDIA L40S", platform="gpu", memory_stats=lambda: {"bytes_limit": 45 * 2**30}))
  assert cpu.memory == float("inf") and gpu.memory == 45
  assert gpu.flops == 4 * cpu.flops == 4 * 2**30
  assert gpu.bandwidth == 4 * cpu.bandwidth
