"""Processes that no machine can hold are refused before they wait for one another."""

import pytest
import torch

from nlpstack.errors import ConfigError
from nlpstack.train.runtime import joined


@pytest.mark.parametrize("n_gpus", [1, 3])
def test_more_processes_than_gpus_are_refused_by_the_first_of_them(
    n_gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match=f"^torchrun: 4 processes on a machine with {n_gpus} GPUs"), joined():
        pass
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(SystemExit) as silent, joined():
        pass
    assert silent.value.code == 2
