"""The picturebook's tokenizer and two untrained text towers of its size."""

import pytest
import torch
from transformers import CLIPTokenizer

from studio.trainers.picturebook_text import Tower, build_towers, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(0)


@pytest.fixture
def towers(tokenizer: CLIPTokenizer) -> tuple[Tower, Tower]:
    torch.manual_seed(2)
    first, second = build_towers(tokenizer)
    return first.eval(), second.eval()
