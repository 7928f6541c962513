"""From the tensors of a file to factors: parts gathered by layer, and each layer's kind told by the parts it has."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from studio.adapter_keys import Place, embedding_key, parse_key
from studio.adapter_settings import Settings
from studio.factor_checks import shape_of
from studio.factors import Dora, Factor, Full, Hadamard, Kronecker, LowRank, sizes_of
from studio.flux_names import ALL_ROWS, Rows, from_flux
from studio.rotation import Rotation

PER_LAYER = "layers"  # the rows of a word that has one for each cross-attention (P+, ED-LoRA)
COMPONENT_KEY = "studio.component"  # which part of the pipeline a PEFT folder is for, whose keys do not say
Tensor = torch.Tensor
Parts = dict[str, Tensor]
_SECOND_TEXT_WIDTH = 1280  # of SDXL's second text encoder, where a file does not say which of the two it means
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_IBM_KEYS = "diffusers attention processors"
_EMBEDDING_WIDTHS = (768, 1024, 1280)


@dataclass
class Made:
    """What a file's tensors amount to; `unread` are the keys that are part of nothing."""

    factors: dict[str, Factor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    format: str = ""


def make_factors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], settings: Settings) -> Made:
    """The factors and biases of `tensors` by "component.layer"; never raises for keys that it cannot explain."""
    places = {key: place for key in tensors if (place := parse_key(key)) is not None}
    text = metadata.get(COMPONENT_KEY)
    text = text if text in _TEXT_ENCODERS else _text_encoder(places, tensors)
    layers: dict[str, Parts] = {}
    keys: dict[str, list[str]] = {}
    again: list[str] = []
    for key, place in places.items():
        layer = f"{place.component or text}.{place.path}"
        if place.part in layers.setdefault(layer, {}):  # said twice, in two conventions
            again.append(key)
            continue
        layers[layer][place.part] = tensors[key]
        keys.setdefault(layer, []).append(key)
    ibm = _is_ibm(layers) and {place.format for place in places.values()} == {_IBM_KEYS}
    made = Made(unread=tuple(key for key in tensors if key not in places) + tuple(again))
    for layer, parts in layers.items():
        bias = parts.pop("bias", None)
        factor = _factor(layer, parts, settings, ibm)
        if factor is None and (parts or bias is None):
            made.unread += tuple(keys[layer])
        elif bias is not None:
            whole = _unfused(layer, Full(bias))
            made.biases |= {name: one.difference for name, one in whole.items() if isinstance(one, Full)}
        if factor is not None:
            made.factors |= _unfused(layer, factor)
    formats = Counter(place.format for place in places.values() if place.part != "alpha")
    made.format = "DiffuseKronA (ibm)" if ibm else formats.most_common(1)[0][0] if formats else ""
    return made


def take_embeddings(name: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """(embeddings by token, the other tensors): those a LoRA brings along, or a textual-inversion file as a whole."""
    found: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if (known := embedding_key(key)) is not None and tensor.dim() in (1, 2):
            found.setdefault(known[0], {})[_tower(known[1])] = _rows(tensor)
        else:
            others[key] = tensor
    rows = all(tensor.dim() in (1, 2) for tensor in others.values())
    if others and rows and set(others) <= {"emb_params", "clip_l", "clip_g"}:
        found[name] = {_tower(key): _rows(tensor) for key, tensor in others.items()}
        return found, {}
    plain = rows and all(t.shape[-1] in _EMBEDDING_WIDTHS and "." not in k for k, t in others.items())
    if others and plain and len(others) <= 16:  # as diffusers saves one: {token: tensor}
        return {key: {"*": _rows(tensor)} for key, tensor in others.items()}, {}
    return found, others


def _factor(layer: str, parts: Parts, settings: Settings, ibm: bool) -> Factor | None:
    """The factor that `parts` are, if they are one, whole and of fitting shapes."""
    parts = dict(parts)
    scalar = parts.pop("alpha", None)
    if scalar is not None and scalar.numel() != 1:
        return None
    alpha = settings.alpha(layer) if scalar is None else float(scalar)
    per_output, dora_scale = parts.pop("magnitude", None), parts.pop("dora_scale", None)
    if ibm and set(parts) == {"down", "up"} and scalar is None:
        return Kronecker(parts["down"].T, parts["up"], layout="ibm")
    if set(parts) == {"oft_blocks"} and per_output is None and dora_scale is None:
        blocks = parts["oft_blocks"]
        return Rotation(blocks, alpha) if blocks.dim() == 3 and blocks.shape[1] == blocks.shape[2] else None
    inner = _plain_factor(parts, alpha, settings, layer)
    if inner is None or (per_output is None and dora_scale is None):
        return inner
    if per_output is not None:
        return Dora(inner, per_output)
    assert dora_scale is not None
    per_input = dora_scale.dim() > 1 and dora_scale.shape[0] == 1 and dora_scale.shape[1] > 1
    return Dora(inner, dora_scale, per_input)


def _plain_factor(parts: Parts, alpha: float | None, settings: Settings, layer: str) -> Factor | None:
    names = set(parts)
    if names in ({"down", "up"}, {"down", "up", "mid"}):
        stable = settings.says(layer, "use_rslora") is True
        made = LowRank(parts["down"], parts["up"], alpha, parts.get("mid"), stable)
        return made if _is_pair(made) else None
    if names == {"weight"}:
        return Full(parts["weight"]) if parts["weight"].dim() else None
    loha = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
    if names in (loha, loha | {"hada_t1", "hada_t2"}):
        first, second = (_pair(parts, f"hada_w{n}", f"hada_t{n}") for n in (1, 2))
        if first is None or second is None or shape_of(first) != shape_of(second):
            return None
        return Hadamard(first, second, alpha)
    return _lokr(parts, alpha, settings, layer)


def _lokr(parts: Parts, alpha: float | None, settings: Settings, layer: str) -> Kronecker | None:
    a = parts.get("lokr_w1", _pair(parts, "lokr_w1", ""))
    b = parts.get("lokr_w2", _pair(parts, "lokr_w2", "lokr_t2"))
    used = {name for one, whole, low in ((a, "lokr_w1", {"lokr_w1_a", "lokr_w1_b"}),
                                         (b, "lokr_w2", {"lokr_w2_a", "lokr_w2_b", "lokr_t2"}))
            for name in ({whole} if isinstance(one, Tensor) else low)}  # fmt: skip
    if a is None or b is None or not set(parts) <= used or (isinstance(a, Tensor) and a.dim() != 2):
        return None
    if isinstance(b, Tensor) and b.dim() < 2:
        return None
    made = Kronecker(a, b, alpha)
    rank = settings.rank(layer)
    if made.rank is None and alpha is not None and rank and isinstance(a, Tensor):
        return Kronecker(a * (alpha / rank), b)  # PEFT scales even two whole matrices, LyCORIS does not
    return made


def _pair(parts: Parts, start: str, mid: str) -> LowRank | None:
    """LyCORIS's own low-rank matrix a @ b, or with a core tensor a.T, core, b."""
    up, down, core = parts.get(f"{start}_a"), parts.get(f"{start}_b"), parts.get(mid)
    if up is None or down is None or up.dim() != 2 or down.dim() != 2:
        return None
    made = LowRank(down, up if core is None else up.T, None, core)
    return made if _is_pair(made) else None


def _is_pair(made: LowRank) -> bool:
    down, up, mid = made.down, made.up, made.mid
    if down.dim() not in (2, 4) or up.dim() not in (2, 4):
        return False
    if mid is not None:
        if down.shape[2:].numel() != 1 or up.shape[2:].numel() != 1:
            return False
        return mid.dim() == 4 and tuple(mid.shape[:2]) == (up.shape[1], down.shape[0])
    return down.shape[0] == up.shape[1] and up.shape[2:].numel() == 1


def _unfused(layer: str, factor: Factor) -> dict[str, Factor]:
    """Flux's own layers as those of diffusers; a fused one that cannot be cut, and everything else, as it is."""
    component, _, path = layer.partition(".")
    pieces = from_flux(path) if component == "transformer" else None
    cut = [(f"{component}.{target}", _with_rows(factor, rows)) for target, rows in pieces or ()]
    made = {target: one for target, one in cut if one is not None}
    return made if cut and len(made) == len(cut) else {layer: factor}


def _with_rows(factor: Factor, rows: Rows) -> Factor | None:
    """`factor` for a layer of these outputs alone; None where it cannot be told apart."""
    if rows == ALL_ROWS:
        return factor
    match factor:
        case LowRank():
            up = _taken(factor.up, rows)
            return None if up is None else replace(factor, up=up)
        case Full():
            difference = _taken(factor.difference, rows)
            return None if difference is None else Full(difference)
        case Hadamard():
            first, second = _with_rows(factor.first, rows), _with_rows(factor.second, rows)
            both = isinstance(first, LowRank) and isinstance(second, LowRank)
            return replace(factor, first=first, second=second) if both else None
        case Dora(per_input=False) if factor.magnitude.numel() == sizes_of(factor.inner)[0]:
            inner, magnitude = _with_rows(factor.inner, rows), _taken(factor.magnitude.flatten(), rows)
            return None if inner is None or magnitude is None else Dora(inner, magnitude)
    return None


def _taken(tensor: Tensor, rows: Rows) -> Tensor | None:
    ends = [(len(tensor) * start, len(tensor) * end) for start, end in rows]
    if any(end.denominator > 1 for pair in ends for end in pair):
        return None
    return torch.cat([tensor[int(start) : int(end)] for start, end in ends])


def _is_ibm(layers: Mapping[str, Parts]) -> bool:
    """Whether the pairs are DiffuseKronA's: its keys are LoRA's, but its factors share no rank."""
    pairs = [(p["down"], p["up"]) for p in layers.values() if set(p) == {"down", "up"}]
    plain = [(down, up) for down, up in pairs if down.dim() == up.dim() == 2]
    return len(plain) == len(layers) > 0 and any(down.shape[0] != up.shape[1] for down, up in plain)


def _text_encoder(places: Mapping[str, Place], tensors: Mapping[str, Tensor]) -> str:
    """Which text encoder a file means that does not say so: SDXL's second is wider."""
    widths = {
        tensors[key].shape[-1]
        for key, place in places.items()
        if place.component is None and place.part == "down" and tensors[key].dim() > 1
        and place.path.endswith(("q_proj", "k_proj", "v_proj"))
    }  # fmt: skip
    return "text_encoder_2" if widths == {_SECOND_TEXT_WIDTH} else "text_encoder"


def _tower(part: str) -> str:
    return part if part in ("clip_l", "clip_g", PER_LAYER) else "*"


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() > 1 else tensor[None]
