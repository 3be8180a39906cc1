"""How much memory and time training takes at a size: arithmetic on what ``graph``, ``model`` and ``train`` allocate.

Symbols: U users and E train interactions of one worker (an even share), I items, S items of one worker, T text width,
H hidden width, D representation width, B positives of one worker a step, N negatives. No tensor is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpharec.config import EstimateSettings, Settings
from alpharec.graph import MOST_INTERACTIONS
from alpharec.model import UNITS_SUMMED, mean_commutes, takes_own_items, units_at_once

BYTES = {"float32": 4, "bfloat16": 2}
CACHE = 1 << 20  # of a core


class EstimateError(ValueError):
    """A size is missing, below 1, or contradicts another."""


@dataclass(frozen=True)
class Device:
    """What one worker computes on.

    Attributes:
        memory: bytes.
        products: FLOP/s of matrix products by precision, as expected to be reached, not as advertised.
        rows: bytes/s at which rows are gathered and summed; ``cached_rows`` where a slice of all items' hidden units
            takes at most ``CACHE`` bytes.
        stream: bytes/s of an elementwise pass, reads and writes together.
        candidate: seconds to draw, score and differentiate one sampled candidate.
        link: bytes/s to other workers; with more workers than ``group``, ``far_link``.
        launch: seconds a step that no work explains: starting kernels.
        shares_host: whether ``memory`` is also what the set-up uses.
    """

    memory: float
    products: dict[str, float]
    rows: float
    cached_rows: float
    stream: float
    candidate: float
    link: float
    far_link: float
    group: int
    launch: float
    shares_host: bool


def _hopper(memory: float, bandwidth: float) -> Device:
    # NVIDIA's datasheets: H100 SXM 80 GB, 3.35 TB/s; H200 SXM 141 GB, 4.8 TB/s; both 67 TFLOP/s float32 (TF32 is off,
    # torch's default), 989 bfloat16 dense, NVLink 450 GB/s a direction. Assumed, not measured: half of the products,
    # half of the bandwidth for gathered rows, 0.7 for streams, 0.7 of the links; between machines of 8 GPUs, 8 adapters
    # of 400 Gb/s that a ring uses all at once.
    # A candidate moves about 1 kB (three gathered rows of 64, the sort, the draw).
    return Device(
        memory=memory,
        products={"float32": 0.5 * 67e12, "bfloat16": 0.5 * 989e12},
        rows=0.5 * bandwidth,
        cached_rows=0.5 * bandwidth,
        stream=0.7 * bandwidth,
        candidate=1000 / (0.5 * bandwidth),
        link=0.7 * 450e9,
        far_link=0.7 * 8 * 50e9,
        group=8,
        launch=0.005,
        shares_host=False,
    )


DEVICES = {
    # Two cores of an AMD EPYC (Zen 4), torch 2.13. Float32 products, the cached rate: docs/performance.md (ml-1m).
    # The rest is assumed, and checked as a whole by the measurements in docs/scale.md; link and launch are not checked.
    "cpu": Device(
        memory=24e9,
        products={"float32": 185e9, "bfloat16": 450e9},
        rows=30e9,
        cached_rows=100e9,
        stream=20e9,
        candidate=60e-9,
        link=2e9,
        far_link=1e9,
        group=8,
        launch=0.002,
        shares_host=True,
    ),
    "h100": _hopper(80e9, 3.35e12),
    "h200": _hopper(141e9, 4.8e12),
}


@dataclass(frozen=True)
class Size:
    """A training run's size.

    Attributes:
        users, items, interactions: of the train split, over all workers.
        held_out: interactions of valid and test.
        valid: those of the split that picks the epoch.
        batch_size: positives a step, over all workers; ``scored_at_once`` of them drawn and scored at a time.
        block_size: users ranked at a time when validating.
        propagate_first: vectors were propagated ahead of training, so that a step takes its batch's rows alone.
        centred: title vectors are read less their mean, which takes a second copy of them for a moment.

    Raises:
        EstimateError: a size is below 1, or there are more interactions than pairs.
    """

    users: int
    items: int
    interactions: int
    text_width: int
    hidden_width: int = 1536
    width: int = 64
    projector: str = "mlp"
    num_layers: int = 2
    batch_size: int = 4096
    scored_at_once: int = 16_384
    num_negatives: int = 256
    precision: str = "float32"
    num_workers: int = 1
    held_out: int = 0
    valid: int = 0
    block_size: int = 1024
    propagate_first: bool = False
    centred: bool = False

    @property
    def first_width(self) -> int:
        """Width of the projector's first layer."""
        return self.width if self.projector == "linear" else self.hidden_width

    @property
    def commutes(self) -> bool:
        """Whether users' means are taken after the first layer."""
        kept = self.propagate_first or self.projector == "residual"
        return not kept and mean_commutes(self.users, self.interactions, self.text_width)

    @property
    def num_rounds(self) -> int:
        """Rounds of propagation in a step."""
        return 0 if self.propagate_first else self.num_layers

    @property
    def whole(self) -> bool:
        """Whether a worker has all items and projects those of its batch alone."""
        return self.propagate_first and takes_own_items(self.batch_size, self.num_negatives, self.items)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name in ("num_layers", "held_out", "valid", "propagate_first", "centred") else 1
            if isinstance(value, int) and value < least:
                raise EstimateError(f"estimate: {name} must be {least} or more (got {value})")
        if self.precision not in BYTES:
            raise EstimateError(f"estimate: precision must be one of {', '.join(BYTES)} (got {self.precision})")
        if self.interactions > self.users * self.items:
            raise EstimateError(
                f"estimate: interactions must be at most users x items = {self.users * self.items} "
                f"(got {self.interactions}); a pair counts once"
            )


@dataclass(frozen=True)
class Estimate:
    """What one worker needs.

    Attributes:
        memory: bytes on the device by part while training; ``step`` is the largest moment of a step beyond the rest.
        setup_host: most bytes in the host's memory before the first step: reading and sorting its own part.
        setup_device: most bytes on the device before the first step.
        seconds: of one step, by kind of work.
        steps_per_epoch: steps.
        problems: what does not work or does not fit, in words; empty if nothing is known against the run.
    """

    memory: dict[str, float]
    setup_host: float
    setup_device: float
    seconds: dict[str, float]
    steps_per_epoch: int
    problems: list[str]

    @property
    def peak(self) -> float:
        """Most bytes on the device at any time."""
        return max(sum(self.memory.values()), self.setup_device)

    @property
    def seconds_per_step(self) -> float:
        return sum(self.seconds.values())

    @property
    def seconds_per_epoch(self) -> float:
        """Without validation."""
        return self.seconds_per_step * self.steps_per_epoch


def estimate(size: Size, device: Device, *, memory: float | None = None) -> Estimate:
    """Return what a run of this size needs of each worker; ``memory`` bytes a worker has, else the device's."""
    parts = _memory(size, device)
    host, on_device = _setup(size, device)
    found = Estimate(
        memory=parts,
        setup_host=host,
        setup_device=on_device,
        seconds=_seconds(size, device),
        steps_per_epoch=max(1, size.interactions // size.batch_size),
        problems=[],
    )
    found.problems.extend(_problems(size, found, device.memory if memory is None else memory))
    return found


def size_of(
    settings: Settings, dataset: Mapping[str, int] | None = None, vectors: Mapping[str, int] | None = None
) -> Size:
    """Return the size of a configured run, from the summaries of its dataset and vectors where it names no other.

    Raises:
        EstimateError: neither gives a size, or the model is not AlphaRec.
    """
    if not _known(settings):
        raise EstimateError(
            "estimate: knows model.kind = alpharec with a projector and contrast.kind = none alone (got "
            f"{settings.model.kind}, {settings.model.projector}, {settings.contrast.kind})"
        )
    given, model, train = settings.estimate, settings.model, settings.train
    counts, known = dataset or {}, {}
    stored = {"users": counts.get("users"), "items": counts.get("items"), "interactions": counts.get("train")}
    stored["text_width"] = vectors["width"] if vectors else None
    for name, value in stored.items():
        chosen = getattr(given, name) or value
        if chosen is None:
            raise EstimateError(
                f"estimate: {name} is not known (got no --estimate.{name.replace('_', '-')}, and the store has no "
                f"{'vectors' if name == 'text_width' else 'dataset'} of these settings); pass it, or run the job before"
            )
        known[name] = chosen
    return Size(
        **known,
        hidden_width=model.resolve_hidden_width(known["text_width"]),
        width=model.resolve_width(known["text_width"]),
        projector=model.projector,
        num_layers=model.num_layers,
        batch_size=train.batch_size,
        scored_at_once=train.scored_at_once,
        num_negatives=train.num_negatives,
        precision=train.precision,
        num_workers=train.fewest_workers,
        held_out=0 if given.interactions else counts.get("valid", 0) + counts.get("test", 0),
        valid=0 if given.interactions else counts.get(train.select_on, 0),
        block_size=settings.evaluate.block_size,
        propagate_first=model.order == "propagate-first",
        centred=model.centred,
    )


def _known(settings: Settings) -> bool:
    model = settings.model
    return model.kind == "alpharec" and model.projector != "identity" and settings.contrast.kind == "none"


def run_problems(
    settings: Settings,
    dataset: Mapping[str, int],
    vectors: Mapping[str, int],
    *,
    memory: float,
    gpu_kinds: Sequence[str] = (),
) -> list[str]:
    """Return what does not fit of a run about to start, as far as known; ``settings.estimate`` does not count.

    Args:
        memory: bytes of the host for each worker.
        gpu_kinds: of the cluster; the smallest known one is taken where workers use a GPU, none known says nothing.
    """
    if not _known(settings):
        return []
    size = size_of(settings.model_copy(update={"estimate": EstimateSettings()}), dataset, vectors)
    kinds = [DEVICES[kind.lower()] for kind in gpu_kinds if kind.lower() in DEVICES] if settings.train.use_gpu else []
    if settings.train.use_gpu and not kinds:
        return []
    device = min(kinds, key=lambda kind: kind.memory, default=DEVICES["cpu"])
    found = estimate(size, device, memory=memory if device.shares_host else None)
    if not device.shares_host and found.setup_host > memory:
        found.problems.append(
            f"a worker loads its data with about {found.setup_host / 1e9:.1f} GB of its node's memory and has "
            f"{memory / 1e9:.1f}; put fewer workers on a node"
        )
    return found.problems


def format_estimate(size: Size, device: str, found: Estimate) -> str:
    """Return a short table, and a line for each problem."""
    lines = [
        f"{size.users:,} users, {size.items:,} items, {size.interactions:,} train interactions, text width "
        f"{size.text_width:,}, hidden {size.hidden_width:,}, {size.precision}, {size.num_workers} x {device}",
        "memory of a worker while training, GB",
        *(f"  {part:<28}{value / 1e9:>12.3f}" for part, value in found.memory.items()),
        f"  {'all':<28}{sum(found.memory.values()) / 1e9:>12.3f}",
        "most before the first step, GB",
        f"  {'on the device':<28}{found.setup_device / 1e9:>12.3f}",
        f"  {'in the host, each worker':<28}{found.setup_host / 1e9:>12.3f}",
        f"seconds of a step of {size.batch_size:,}",
        *(f"  {work:<28}{value:>12.4f}" for work, value in found.seconds.items()),
        f"  {'all':<28}{found.seconds_per_step:>12.4f}",
        f"an epoch: {found.steps_per_epoch:,} steps, {found.seconds_per_epoch:,.1f} s without validation",
        *(f"warning: {problem}" for problem in found.problems),
    ]
    return "\n".join(lines)


def num_weights(size: Size) -> int:
    """Return the number of weights of the projector."""
    if size.projector == "linear":
        return size.text_width * size.width
    return (size.text_width + 1) * size.hidden_width + (size.hidden_width + 1) * size.width


def _share(size: Size) -> tuple[float, float, float]:
    """Return users, items and interactions of one worker."""
    workers = size.num_workers
    return size.users / workers, -(-size.items // workers), size.interactions / workers


def _step_rows(size: Size) -> tuple[float, float, float]:
    """Return users and items that a worker projects in a step, and items whose representations it then has."""
    users, share, _ = _share(size)
    if not size.propagate_first:
        return users, share, size.items
    batch = size.batch_size / size.num_workers
    drawn = min(size.items, batch * (1 + size.num_negatives))
    return min(users, batch), *((drawn, drawn) if size.whole else (share, size.items))


def _memory(size: Size, device: Device) -> dict[str, float]:
    (users, share, pairs), items, cell = _share(size), size.items, BYTES[size.precision]
    hidden = sum(_step_rows(size)[:2]) * size.first_width * cell
    # Two int32 lists with pointers, int64 gaps of the negatives, degrees (views into all users') and scales.
    graph = 16 * pairs + 4 * (users + items) + 4 * (users + items) + 16 * size.users + 8 * items
    seen = 8 * (pairs + size.valid / size.num_workers) + 16 * users
    return {
        "title vectors": (items if size.whole else share) * size.text_width * cell,
        "user means": 0.0 if size.commutes else users * size.text_width * cell,
        "graph": graph,
        "validation lists": seen,
        "weights and Adam": num_weights(size) * 4 * 5,  # weights, their gradients, two moments, the best so far
        "step": max(_step_peak(size, device, hidden=hidden), _validation_peak(size)),
    }


def _step_peak(size: Size, device: Device, *, hidden: float) -> float:
    """Return the largest of a step's moments; the kept hidden units last through all of them."""
    pairs, row, cell = _share(size)[2], size.width * 4, BYTES[size.precision]
    users, projected, items = _step_rows(size)
    user, item = users * row, items * row
    taken = (users + (projected if size.whole else 0)) * size.text_width * cell if size.propagate_first else 0
    batch = min(size.batch_size, size.scored_at_once) / size.num_workers
    candidates = batch * (size.num_negatives + 1)
    drawing = 40 * candidates
    # 100 bytes a candidate are measured: scores and their gradients, the sort with its own copies, places, weights.
    # Alive: final representations; scaled items, their gradient and normalisation's two temporaries; the users'.
    loss = 2 * user + 5 * item + 100 * candidates + 4 * batch * row
    # Alive: final representations, their gradients, two copies under way (three of items where workers sum them).
    propagation = (
        4 * user
        + (4 if size.num_workers == 1 else 5) * item
        + 4 * candidates
        + (0 if device.shares_host else 4 * pairs)
    )
    # A group of all items' hidden units as gathered, and as added up on the way back.
    units = min(size.first_width, units_at_once(size.items, cell)) if size.commutes else 0
    projection = 2 * items * units * cell + 3 * (user + item)
    return taken + max(drawing, hidden + loss, hidden + propagation, hidden + projection)


def _validation_peak(size: Size) -> float:
    """Return the scores of a block of users over all items, or a group of hidden units, and the representations."""
    users, share, _ = _share(size)
    cell = BYTES[size.precision]
    units = min(size.first_width, units_at_once(size.items, cell))
    moment = max(4 * size.block_size * size.items, (users + share) * units * cell)
    return 3 * (users + size.items) * size.width * 4 + moment


def _setup(size: Size, device: Device) -> tuple[float, float]:
    """Return the most bytes before the first step, in the host and on the device: a worker reads its own part alone."""
    users, share, pairs = _share(size)
    row = (size.items if size.whole else share) * size.text_width
    # Pairs as read; the mask, the sort of int64 keys, the sorted pairs, EdgeIndex beside the lists.
    indexing = 16 * pairs + 24 * size.users + 128 * pairs
    graph = 16 * pairs + 16 * (users + size.users) + 16 * size.items
    # The splits' pairs of its own users, their copies, the sort.
    listing = 16 * (pairs + size.held_out / size.num_workers) + 75 * pairs
    means = 0.0 if size.commutes else users * size.text_width * 4
    features = row * 5 + means + (row * 2 if size.precision == "bfloat16" else 0)  # with torch.isfinite's answer
    features += row * 4 if size.centred and not size.propagate_first else 0
    if not device.shares_host:
        return max(indexing, graph + 6 * row, graph + 4 * row + listing), graph + features
    both = max(indexing, graph + 6 * row, graph + 4 * row + listing, graph + features + listing / 4)
    return both, both


def _seconds(size: Size, device: Device) -> dict[str, float]:
    pairs, (users, share, items) = _share(size)[2], _step_rows(size)
    cell, workers, width, text = BYTES[size.precision], size.num_workers, size.width, size.text_width
    mlp, hidden, commutes = size.projector != "linear", size.first_width, size.commutes
    rows = share if commutes else share + users
    products = 4 * rows * text * hidden + (6 * (share + users) * hidden * width if mlp else 0)
    sums = 4 * size.num_rounds * pairs * width * 4 + (2 * pairs * hidden * cell if commutes else 0)
    cached = size.items * min(hidden, UNITS_SUMMED) * cell <= CACHE
    # Passes over hidden units: bias, leaky ReLU and their gradients; over representations: propagation and the loss.
    passes = 12 * (share + users) * hidden * cell if mlp else 4 * (share + users) * hidden * cell
    passes += (12 * size.num_rounds + 12) * (users + items) * width * 4
    candidates = size.batch_size / workers * (size.num_negatives + 1)
    link = device.link if workers <= device.group else device.far_link
    whole = 0 if size.whole else 4 * items * width
    # Gathered and scattered once, summed twice over: all_reduce is both.
    sums_of_items = 2 * (2 * size.num_rounds + 1) if size.num_rounds else 1
    messages = whole + whole * sums_of_items + 8 * num_weights(size)
    messages += 2 * items * hidden * cell if commutes else 0
    return {
        "products": products / device.products[size.precision],
        "sums over interactions": sums / (device.cached_rows if cached else device.rows),
        "elementwise": passes / device.stream,
        "batch": candidates * device.candidate,
        "messages": messages * (workers - 1) / workers / link if workers > 1 else 0.0,
        "launch": device.launch,
    }


def _problems(size: Size, found: Estimate, memory: float) -> list[str]:
    problems = []
    if found.peak > memory:
        largest = max(found.memory, key=lambda part: found.memory[part])
        setup = f"before the first step, which takes {found.setup_device / 1e9:.1f} GB"
        where = setup if found.setup_device == found.peak else f"{largest} takes {found.memory[largest] / 1e9:.1f} GB"
        problems.append(
            f"a worker needs about {found.peak / 1e9:.1f} GB and has {memory / 1e9:.1f} ({where}); raise "
            "train.num_workers, or lower model.hidden_width, train.batch_size or evaluate.block_size"
        )
    pairs = size.interactions / size.num_workers
    if pairs > MOST_INTERACTIONS:
        problems.append(
            f"a worker's share of {pairs:,.0f} interactions is beyond the graph's int32 lists ({MOST_INTERACTIONS:,}); "
            "raise train.num_workers"
        )
    return problems
