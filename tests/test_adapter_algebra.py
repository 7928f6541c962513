import itertools

import pytest
import torch

from studio.adapter_algebra import add, add_and_cut, add_clustered, resize
from studio.adapters import Adapter
from studio.errors import UsageError
from studio.factors import Dora, Factor, Full, Hadamard, Kronecker, LowRank

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"
OTHER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(rank: int, seed: int, alpha: float | None = None, size: tuple[int, int] = (24, 20)) -> LowRank:
    return LowRank(random(rank, size[1], seed=seed), random(size[0], rank, seed=seed + 100), alpha)


def conv(rank: int, seed: int, alpha: float | None = None) -> LowRank:
    return LowRank(random(rank, 5, 3, 3, seed=seed), random(12, rank, 1, 1, seed=seed + 100), alpha)


def adapter(name: str = "one", family: str | None = None, **parts: Factor) -> Adapter:
    places = {"q": Q, "conv": CONV, "other": OTHER}
    return Adapter(name, "kohya", family, {places[part]: factor for part, factor in parts.items()})


def dense(factor: Factor) -> torch.Tensor:
    """up @ down in float64, written out from the formula."""
    assert isinstance(factor, LowRank)
    scale = 1.0 if factor.alpha is None else factor.alpha / factor.down.shape[0]
    flat = scale * factor.up.double().flatten(1) @ factor.down.double().flatten(1)
    return flat.reshape(-1, *factor.down.shape[1:])


def near(got: torch.Tensor, truth: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return bool((got.double() - truth).norm() <= tolerance * truth.norm())


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -1.3), (0.01, 9.0)])
def test_the_sum_is_the_dense_sum(weights: tuple[float, float]):
    one = adapter("one", q=linear(2, 1, 1.0), conv=conv(3, 2, 6.0), other=linear(1, 3))
    two = adapter("two", q=linear(5, 4), conv=conv(1, 5, 0.5))
    made = add([(one, weights[0]), (two, weights[1])], "sum")
    for layer in (Q, CONV):
        truth = weights[0] * dense(one.factors[layer]) + weights[1] * dense(two.factors[layer])
        assert near(made.delta(layer), truth)
    assert near(made.delta(OTHER), weights[0] * dense(one.factors[OTHER]))
    assert [made.factors[layer].rank for layer in (Q, CONV, OTHER)] == [7, 4, 1]
    assert all(isinstance(one, LowRank) and one.scale == 1 for one in made.factors.values())


def test_a_matrix_and_a_convolution_of_one_pixel_add_up():
    down, up = random(2, 20, seed=5), random(24, 2, seed=6)
    pixel = LowRank(down[..., None, None], up[..., None, None])
    made = add([(adapter(q=linear(3, 1)), 1.0), (adapter(q=pixel), 2.0)], "sum")
    assert near(made.delta(Q), dense(linear(3, 1)) + 2 * (up.double() @ down.double()))


@pytest.mark.parametrize("layout", ["kron", "ibm"])
def test_kronecker_products_are_merged_exactly(layout):
    a, b = random(4, 5, seed=1), random(6, 4, seed=2)
    product = torch.kron(a.double(), b.double())
    if layout == "ibm":
        product = product.reshape(4, 6, 20).transpose(0, 1).reshape(24, 20)
    krona = adapter(q=Kronecker(a, b, layout=layout))
    made = add([(krona, 0.5), (adapter(q=linear(2, 3)), 1.0)], "sum")
    assert near(made.delta(Q), 0.5 * product + dense(linear(2, 3)))


@pytest.mark.parametrize("rank", [1, 3, 6, 50])
def test_the_cut_sum_is_the_best_of_its_rank(rank: int):
    parts = [(adapter(q=linear(3, 1), conv=conv(2, 2)), 1.0), (adapter(q=linear(4, 3), conv=conv(4, 4)), -0.6)]
    made = add_and_cut(parts, "svd", rank)
    lost = whole = 0.0
    for layer in (Q, CONV):
        truth = parts[0][1] * dense(parts[0][0].factors[layer]) + parts[1][1] * dense(parts[1][0].factors[layer])
        values = torch.linalg.svdvals(truth.flatten(1))
        tail = values[rank:].square().sum()
        missing = (made.adapter.delta(layer).double() - truth).norm()
        assert missing.square() == pytest.approx(float(tail), rel=1e-5, abs=1e-9)
        lost, whole = lost + float(tail), whole + float(values.square().sum())
    assert made.error == pytest.approx((lost / whole) ** 0.5, rel=1e-6, abs=1e-9)
    assert made.worst[1] >= made.error


def test_no_dense_matrix_is_formed():
    """Ten layers of 20,000 x 20,000 would take 32 GB."""
    huge = [adapter(q=linear(2, seed, size=(20_000, 20_000))) for seed in (1, 2)]
    assert add_and_cut([(one, 1.0) for one in huge], "svd", 4).error < 1e-12


def test_as_many_clusters_as_units_are_the_plain_sum_up_to_the_output_scale():
    one, two = adapter(q=linear(3, 1), conv=conv(2, 2)), adapter(q=linear(3, 3), conv=conv(2, 4))
    summed = add([(one, 1.0), (two, 0.5)], "sum")
    made = add_clustered([(one, 1.0), (two, 0.5)], "lego", 100)
    for layer, ranks in ((Q, (3, 6)), (CONV, (2, 4))):
        assert near(made.delta(layer), (ranks[0] / ranks[1]) ** 0.5 * summed.delta(layer).double())


def test_the_order_of_ranks_and_of_adapters_changes_nothing():
    first, second = linear(4, 1), linear(5, 2)
    turned = torch.tensor([2, 0, 3, 1])
    shuffled = LowRank(first.down[turned], first.up[:, turned], first.alpha)
    made = [
        add_clustered([(adapter(q=a), 1.0), (adapter(q=b), 1.0)], "lego", 3).delta(Q)
        for a, b in ((first, second), (shuffled, second), (second, first))
    ]
    assert torch.allclose(made[0], made[1], atol=1e-6)
    assert torch.allclose(made[0], made[2], atol=1e-6)


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_an_adapter_merge_to_itself(copies: int):
    one = adapter(q=linear(4, 1, 2.0), conv=conv(3, 2))
    made = add_clustered([(one, 1.0)] * copies, "lego", 4)
    assert near(made.delta(Q), dense(one.factors[Q]))
    assert near(made.delta(CONV), dense(one.factors[CONV]))


def test_a_cluster_is_the_mean_of_its_units_at_their_mean_norm():
    """Two adapters of rank 2 whose units come in two tight groups, far from each other."""
    groups = [random(44, seed=n) * 10 for n in (1, 2)]
    units = [[group + random(44, seed=10 * n + m) for n, group in enumerate(groups)] for m in (1, 2)]
    parts = [
        adapter(q=LowRank(torch.stack([u[:20] for u in us]), torch.stack([u[20:] for u in us], 1))) for us in units
    ]
    truth = torch.zeros(24, 20, dtype=torch.float64)
    for n in range(2):
        pair = [units[m][n].double() for m in range(2)]
        mean = (pair[0] + pair[1]) / 2
        mean *= (pair[0].norm() + pair[1].norm()) / 2 / mean.norm()
        truth += torch.outer(mean[20:], mean[:20])
    made = add_clustered([(one, 1.0) for one in parts], "lego", 2)
    assert near(made.delta(Q), truth)


def test_the_clusters_are_the_best_there_are():
    """Brute force over all partitions of seven units into three."""
    factor = linear(7, 3, size=(4, 3))
    units = torch.cat([factor.down, factor.up.T], 1).double()

    def groups(labels: tuple[int, ...]) -> list[torch.Tensor]:
        return [units[[n for n, label in enumerate(labels) if label == k]] for k in set(labels)]

    def spread(labels: tuple[int, ...]) -> float:
        return float(sum((group - group.mean(0)).square().sum() for group in groups(labels)))

    best = min((labels for labels in itertools.product(range(3), repeat=7) if len(set(labels)) == 3), key=spread)
    truth = torch.zeros(4, 3, dtype=torch.float64)
    for group in groups(best):
        unit = group.mean(0) * group.norm(dim=1).mean() / group.mean(0).norm()
        truth += torch.outer(unit[3:], unit[:3])
    assert near(add_clustered([(adapter(q=factor), 1.0)], "lego", 3).delta(Q), (7 / 3) ** 0.5 * truth)


@pytest.mark.parametrize("rank", [1, 2, 4, 9])
def test_resize_loses_the_tail_of_the_singular_values(rank: int):
    one = adapter(q=linear(6, 1, 3.0), conv=conv(4, 2))
    made = resize(one, rank=rank)
    for layer in (Q, CONV):
        truth = dense(one.factors[layer])
        tail = torch.linalg.svdvals(truth.flatten(1))[rank:].norm()
        assert (made.adapter.delta(layer).double() - truth).norm() == pytest.approx(float(tail), rel=1e-5, abs=1e-5)
        factor = made.adapter.factors[layer]
        assert isinstance(factor, LowRank)
        assert factor.alpha == factor.rank == min(rank, 6 if layer == Q else 4)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999, 1.0])
def test_resize_to_an_energy_keeps_the_fewest_ranks_that_hold_it(energy: float):
    one = adapter(q=linear(8, 1), conv=conv(6, 2))
    made = resize(one, energy=energy)
    for layer in (Q, CONV):
        squares = torch.linalg.svdvals(dense(one.factors[layer]).flatten(1)).square()
        rank = made.adapter.factors[layer].rank
        assert rank is not None
        assert squares[:rank].sum() >= (energy - 1e-9) * squares.sum()
        assert squares[: rank - 1].sum() < energy * squares.sum()


def test_what_has_no_low_rank_form_is_resized_by_its_dense_matrix():
    loha = Hadamard(linear(2, 1), linear(2, 3), 1.0)
    truth = 0.5 * dense(loha.first) * dense(loha.second)
    full = Full(random(12, 5, 3, 3, seed=7))
    made = resize(adapter(q=loha, conv=full), rank=4)
    assert near(made.adapter.delta(Q), truth)  # the product of two ranks of 2 has rank 4
    tail = torch.linalg.svdvals(full.difference.double().flatten(1))[4:].norm()
    assert (made.adapter.delta(CONV) - full.difference).norm() == pytest.approx(float(tail), rel=1e-5)


def test_a_layer_of_zeros_stays_one():
    made = resize(adapter(q=LowRank(torch.zeros(4, 20), torch.zeros(24, 4)), conv=conv(2, 1)), energy=0.5)
    assert not made.adapter.delta(Q).any()
    assert made.worst[0] == CONV


def test_what_was_said_of_the_old_rank_is_not_said_of_the_new():
    told = {"studio.rank": "6", "ss_network_dim": "6", "ss_network_alpha": "3", "ss_output_name": "milo"}
    made = resize(Adapter("a", "", "sd15", {Q: linear(6, 1)}, metadata=told), rank=2).adapter
    assert made.metadata == {"ss_output_name": "milo", "studio.family": "sd15"}


DORA = Dora(linear(2, 1), torch.ones(24))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([adapter(q=linear(2, 1)), adapter(q=DORA)], "attn1.to_q is DoRA on LoRA"),
        ([adapter(q=linear(2, 1)), adapter(q=Full(torch.ones(24, 20)))], "attn1.to_q is full"),
        ([adapter(q=linear(2, 1)), adapter(q=Hadamard(linear(2, 1), linear(2, 3)))], "attn1.to_q is LoHa"),
        ([adapter(q=linear(2, 1)), adapter("two", q=linear(2, 1, size=(24, 30)))], "24 x 20 and 24 x 30"),
        ([adapter("a", "sdxl", q=linear(2, 1)), adapter("b", "sd15", q=linear(2, 1))], "a: Stable Diffusion XL, b:"),
        ([adapter(q=linear(2, 1)), Adapter("w", "", None, {}, embeddings={"x": {"*": torch.ones(1, 8)}})], "no layer"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(parts: list[Adapter], said: str):
    for merge in (
        add,
        lambda parts, name: add_and_cut(parts, name, 2),
        lambda parts, name: add_clustered(parts, name, 2),
    ):
        with pytest.raises(UsageError, match=said):
            merge([(one, 1.0) for one in parts], "new")


@pytest.mark.parametrize(
    ("factor", "said"), [(DORA, "DoRA on LoRA"), (Full(torch.ones(24)), "norm's weight")], ids=["dora", "norm"]
)
def test_what_cannot_be_resized_is_refused_by_name(factor: Factor, said: str):
    with pytest.raises(UsageError, match=f"attn1.to_q is .*{said}"):
        resize(adapter(q=factor), rank=2)


def test_biases_are_not_lost_in_silence():
    with pytest.raises(UsageError, match="biases"):
        resize(Adapter("b", "", None, {Q: linear(2, 1)}, {Q: torch.ones(24)}), rank=2)


@pytest.mark.parametrize("asked", [{}, {"rank": 2, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}, {"energy": 1.5}])
def test_a_rank_or_an_energy_must_make_sense(asked: dict):
    with pytest.raises(UsageError):
        resize(adapter(q=linear(2, 1)), **asked)


def test_words_come_along_and_may_not_collide():
    word = {"x": {"*": torch.ones(1, 8)}}
    one, two = (Adapter(name, "", None, {Q: linear(2, 1)}, embeddings=word) for name in "ab")
    assert add([(one, 1.0), (two, 1.0)], "new").embeddings == word
    other = Adapter("c", "", None, {Q: linear(2, 1)}, embeddings={"x": {"*": torch.zeros(1, 8)}})
    with pytest.raises(UsageError, match="a word x"):
        add([(one, 1.0), (other, 1.0)], "new")
