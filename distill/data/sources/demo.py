"""The demo's shop: a simulator whose next-item distribution is known exactly.

Items are product types crossed with design lines ("Aurora" tent, "Basalt" kettle, ...). Their titles and descriptions
come from a grammar; what an item goes with can be read from its words, so a model that reads can place items that are
too rare to count. The distribution of the next item depends on the visible history alone, so the oracle is exact and
the distance of any model to the truth (KL) is well defined.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distill.data.dataset import PAD
from distill.data.sources import Options, Source, flatten
from distill.runtime.commands import command_for
from distill.runtime.errors import UserError

FILE = "simulator.safetensors"
VERSION = 2  # part of the data set's identity: raise it when the same seed would give another shop


@dataclass(frozen=True)
class Weights:
    """How much each motive counts when a user picks the next item; the first four sum to 1.

    The mix is chosen so that each kind of knowledge is needed and none suffices. Complements and interests are the
    structure to be learnt; popularity is the floor that any counter gets; the uniform noise keeps every item possible,
    so that KL is finite and no model can be perfect.
    """

    complement: float = 0.45
    """A companion of the last item: one of two companion types, mostly of the same line. The tie stands in the text,
    and a counter sees it only for items that were bought often: this is what rewards reading and sharing of codes."""
    interest: float = 0.35
    """Departments and lines of the recent history: rewards models that use more than the last item."""
    popularity: float = 0.12
    """What everybody buys: known to any counter, and the reason why rare items are rare."""
    uniform: float = 0.08
    """Noise: nobody can foresee it."""
    first_companion: float = 0.7
    """Share of the first of the two companion types; their order can be learnt, so soft labels have something to say
    beyond the one item that was bought."""
    same_brand: float = 0.3
    """Pull of a companion of the brand's other line; the same line pulls with 1."""
    other_line: float = 0.05
    """Pull of a companion of any other line."""
    decay: float = 0.7
    """Each step back in the history counts this much less: interests drift within some three purchases."""
    damping: float = 0.5
    """Power of popularity among companions and inside an interest: well-known items lead, but do not drown the rest."""
    zipf: float = 1.0
    """Popularity of the item of rank r is 1 / r^zipf, as in real shops: a long tail of items too rare to count."""
    memory: int = 20
    """Only this many last items matter, as many as the models see."""
    shortest: int = 5
    """Fewest items a user buys (5-core, as in the paper)."""
    mean_extra: float = 4.0
    """Mean of the geometric number of purchases beyond `shortest`: sequences of about 9, as on Amazon."""
    longest: int = 21
    """Most items a user buys: `memory` + 1, so that the whole history is always visible and no item is bought twice."""


@dataclass(frozen=True)
class Simulator:
    """A shop and the law by which its users buy.

    Attributes:
        seed: decides popularity, drift, order of the items and their texts.
        types: row of `_types()` [n_items].
        departments: department number [n_items].
        lines: design line [n_items].
        popularity: sums to 1 [n_items].
        ties: ties[a, b] = share of b among the companions of a; rows sum to 1 [n_items, n_items].
        drift: drift[a, b] = share of an interest in department a that turns to b; rows sum to 1 [6, 6].
        weights: see `Weights`.
    """

    seed: int
    types: np.ndarray
    departments: np.ndarray
    lines: np.ndarray
    popularity: np.ndarray
    ties: np.ndarray
    drift: np.ndarray
    weights: Weights = Weights()

    @staticmethod
    def build(seed: int, n_items: int = 600) -> Simulator:
        """Make a shop.

        Args:
            seed: any integer >= 0.
            n_items: a multiple of the 60 product types; one line for every 60.

        Raises:
            UserError: another number of items, or a negative seed.
        """
        n_types, most = len(_types()), len(_types()) * len(LINES)
        if n_items % n_types or not 0 < n_items <= most:
            raise UserError(f"The demo shop has a multiple of {n_types} items, at most {most}; got {n_items}.")
        if seed < 0:
            raise UserError(f"seed must not be negative; got {seed}.")
        weights = Weights()
        rng = np.random.default_rng([seed, 1])
        # Shuffled, so that an item's number says nothing about it.
        order = rng.permutation(n_items)
        types, lines = order % n_types, order // n_types
        popularity = 1.0 / (1 + rng.permutation(n_items)) ** weights.zipf
        ties = _ties(types, lines, popularity, weights)
        # A ring in random order: most of an interest stays, the rest moves on to the next two departments.
        ring = rng.permutation(len(DEPARTMENTS))
        drift = 0.6 * np.eye(len(DEPARTMENTS))
        drift[ring, np.roll(ring, -1)] = 0.3
        drift[ring, np.roll(ring, -2)] = 0.1
        departments = np.array([kind.department for kind in _types()])[types]
        return Simulator(seed, types, departments, lines, popularity / popularity.sum(), ties, drift, weights)

    @property
    def n_items(self) -> int:
        return len(self.types)

    def next_item_probabilities(self, histories: np.ndarray) -> np.ndarray:
        """The exact distribution from which `sample` draws.

        Args:
            histories: item numbers, oldest first, padded on the right with -1 [n, H]. Only the last
                `weights.memory` items count; an empty history gets the distribution of the first purchase.

        Returns:
            float64 [n, n_items]; rows sum to 1, items in the history have 0.
        """
        w = self.weights
        recent = _last(np.asarray(histories, dtype=np.int64), w.memory)
        n, width = recent.shape
        bought = recent != PAD
        lengths = bought.sum(1)
        result = np.tile(w.popularity * self.popularity + w.uniform / self.n_items, (n, 1))

        age = lengths[:, None] - 1 - np.arange(width)
        share = np.where(bought, w.decay ** np.maximum(age, 0), 0.0)
        share /= np.maximum(share.sum(1, keepdims=True), 1e-300)
        department = _share_by(self.departments[recent], share, len(self.drift)) @ self.drift
        line = _share_by(self.lines[recent], share, int(self.lines.max()) + 1)
        interest = department[:, self.departments] * line[:, self.lines]
        interest *= self.popularity**w.damping
        total = interest.sum(1, keepdims=True)
        result += w.interest * np.divide(interest, total, out=interest, where=total > 0)

        last = recent[np.arange(n), np.maximum(lengths - 1, 0)]
        result += w.complement * self.ties[last]

        row, column = np.nonzero(bought)
        result[row, recent[row, column]] = 0.0
        result[lengths == 0] = self.popularity
        return result / result.sum(1, keepdims=True)

    def sample(self, n_users: int, seed: int) -> list[np.ndarray]:
        """Draw users' purchases.

        Returns:
            One int64 array of item numbers a user, in time order; no item twice.
        """
        w = self.weights
        rng = np.random.default_rng([seed, 2])
        longest = min(w.longest, self.n_items)
        lengths = np.minimum(w.shortest + rng.geometric(1 / (1 + w.mean_extra), n_users) - 1, longest)
        histories = np.full((n_users, longest), PAD, dtype=np.int64)
        for step in range(int(lengths.max(initial=0))):
            active = np.flatnonzero(lengths > step)
            cumulative = np.cumsum(self.next_item_probabilities(histories[active, :step]), axis=1)
            draw = rng.random((len(active), 1)) * cumulative[:, -1:]
            # The first item whose cumulative probability exceeds the draw: never one of probability 0.
            histories[active, step] = (cumulative <= draw).sum(1)
        return [row[:length] for row, length in zip(histories, lengths, strict=True)]

    def items_table(self) -> pa.Table:
        """The catalogue: item_id, title, description, brand, categories (strings); row = item number."""
        rows = [
            _describe(number, int(kind), int(line), np.random.default_rng([self.seed, 3, number]))
            for number, (kind, line) in enumerate(zip(self.types, self.lines, strict=True))
        ]
        return pa.Table.from_pylist(rows)

    def save(self, folder: Path) -> None:
        """Write `simulator.safetensors` into an existing folder."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        facts = json.dumps({"version": VERSION, "seed": self.seed, "weights": asdict(self.weights)}, sort_keys=True)
        # One key only: safetensors writes several in any order, and the same shop must give the same bytes.
        save_file(arrays, Path(folder) / FILE, metadata={"facts": facts})

    @staticmethod
    def load(folder: Path) -> Simulator:
        """Read what `save` wrote.

        Raises:
            UserError: missing (not a demo data set), damaged, or of another version.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise UserError(f"No {FILE} in {folder}: only demo data sets have a known distribution.")
        try:
            with safe_open(str(path), "numpy") as file:
                facts = json.loads(file.metadata()["facts"])
                arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            if facts["version"] != VERSION:
                raise UserError(
                    f"{path} has version {facts['version']}, this program reads {VERSION}. "
                    f"Make it again: {command_for('dataset', path.parent)} --overwrite"
                )
            return Simulator(seed=facts["seed"], weights=Weights(**facts["weights"]), **arrays)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(
                f"{path} is damaged ({error}). Make it again: {command_for('dataset', path.parent)} --overwrite"
            ) from None


_ARRAYS = ("types", "departments", "lines", "popularity", "ties", "drift")


def files(folder: Path | None, options: Options) -> list[Path]:
    """No files are read."""
    return []


def read(folder: Path | None, options: Options) -> Source:
    """The demo data set of `options.seed` and `options.users`."""
    simulator = Simulator.build(options.seed)
    values, offsets = flatten(simulator.sample(options.users, options.seed))
    user_ids = pa.array([f"U{number:05d}" for number in range(options.users)])
    return Source(
        simulator.items_table(), user_ids, values, offsets, origin="the simulator", extra_files=simulator.save
    )


def _ties(types: np.ndarray, lines: np.ndarray, popularity: np.ndarray, w: Weights) -> np.ndarray:
    """Share of each item among the companions of each: companion type, closeness of the lines, popularity."""
    brands = lines // 2
    pull = np.where(brands[:, None] == brands, w.same_brand, w.other_line)
    pull[lines[:, None] == lines] = 1.0
    pull = pull * popularity**w.damping
    ties = np.zeros(pull.shape)
    companion_types = np.array([kind.companions for kind in _types()])[types]
    for place, share in enumerate((w.first_companion, 1 - w.first_companion)):
        of_type = np.where(types == companion_types[:, place, None], pull, 0.0)
        ties += share * of_type / of_type.sum(1, keepdims=True)
    return ties


def _share_by(groups: np.ndarray, share: np.ndarray, count: int) -> np.ndarray:
    """Add up `share` [n, H] by `groups` [n, H] (numbers below `count`; anything where the share is 0) to [n, count]."""
    n = len(groups)
    flat = (np.arange(n)[:, None] * count + groups).ravel()
    return np.bincount(flat, weights=share.ravel(), minlength=n * count).reshape(n, count)


def _last(histories: np.ndarray, memory: int) -> np.ndarray:
    """The last `memory` items of each row, moved to the left: [n, H] -> [n, min(H, memory)], at least one column."""
    n, width = histories.shape
    if width == 0:
        return np.full((n, 1), PAD, dtype=np.int64)
    if width <= memory:
        return histories
    lengths = (histories != PAD).sum(1, keepdims=True)
    index = np.maximum(lengths - memory, 0) + np.arange(memory)
    return np.take_along_axis(histories, index, axis=1)


# The grammar.

LINES = (
    *("Aurora", "Basalt", "Cedar", "Delta", "Ember", "Fjord", "Granite", "Harbor", "Indigo", "Juniper"),
    *("Kestrel", "Lumen", "Meadow", "Nimbus", "Onyx", "Prairie", "Quartz", "Ridge", "Solstice", "Tundra"),
)
BRANDS = (  # two lines a brand
    "Northfell",
    "Oak & Iron",
    "Halden",
    "Stonebridge",
    "Mirelle",
    "Peakworks",
    "Vasari",
    "Kitewood",
    "Brightwater",
    "Ostara",
)
LOOKS = (  # each line has its looks: two words that its texts may use
    ("pale green", "shimmering"),
    ("charcoal", "matte"),
    ("reddish brown", "wood-grain"),
    ("sand", "slim"),
    ("orange", "rugged"),
    ("ice blue", "streamlined"),
    ("grey", "heavy-duty"),
    ("navy", "classic"),
    ("deep blue", "minimalist"),
    ("olive", "rustic"),
    ("copper", "lightweight"),
    ("white", "bright"),
    ("grass green", "soft"),
    ("silver", "compact"),
    ("black", "glossy"),
    ("wheat", "simple"),
    ("clear", "faceted"),
    ("brown", "sturdy"),
    ("yellow", "cheerful"),
    ("snow white", "insulated"),
)
DEPARTMENTS = {  # words that its descriptions may use
    "Camping": ("camping", "hiking and camping", "the outdoors", "weekends in the tent"),
    "Kitchen": ("the kitchen", "cooking", "home cooks", "everyday cooking"),
    "Cycling": ("cycling", "bike commuters", "long rides", "life on two wheels"),
    "Garden": ("the garden", "gardening", "planting and pruning", "balcony and garden"),
    "Music": ("music", "making music", "stage and studio", "practice at home"),
    "Office": ("the office", "desk work", "studying and writing", "the home office"),
}
# department: name / synonym / features / sizes / first companion, second companion. One line a type.
TYPES = """
Camping: tent / shelter / waterproof flysheet, two porches, colour-coded poles / 2 person, 3 person, 4 person / sleeping bag, headlamp
Camping: sleeping bag / mummy bag / down filling, draught collar, two-way zip / 0 C, -5 C, -10 C / sleeping mat, backpack
Camping: sleeping mat / sleeping pad / self-inflating foam, non-slip base, repair kit / 3 cm, 5 cm, 7 cm / camp pillow, sleeping bag
Camping: camp pillow / travel pillow / brushed cover, inflatable core, stuff sack / small, regular, large / sleeping mat, headlamp
Camping: camp stove / gas burner / piezo ignition, folding legs, wind shield / 2 kW, 3 kW, 4 kW / camp cookset, water bottle
Camping: camp cookset / mess kit / hard-anodised pots, folding handles, nesting bowls / 1 person, 2 person, 4 person / water bottle, chef's knife
Camping: headlamp / head torch / red night mode, tilting beam, rechargeable cell / 200 lumens, 350 lumens, 500 lumens / backpack, bike light
Camping: backpack / rucksack / rain cover, ventilated back, hip belt / 30 l, 45 l, 60 l / tent, water bottle
Camping: water bottle / drinking flask / double wall, leakproof lid, wide mouth / 0.5 l, 0.75 l, 1 l / camp stove, cooler
Camping: cooler / ice chest / thick foam walls, drain plug, carrying strap / 20 l, 28 l, 40 l / camp cookset, mixing bowl
Kitchen: chef's knife / cook's knife / forged blade, full tang, balanced handle / 16 cm, 20 cm, 24 cm / cutting board, knife sharpener
Kitchen: cutting board / chopping board / juice groove, end grain, rubber feet / small, medium, large / knife sharpener, mixing bowl
Kitchen: knife sharpener / whetstone / ceramic rods, two grits, non-slip base / 400 grit, 1000 grit, 3000 grit / chef's knife, pruning shears
Kitchen: frying pan / skillet / non-stick coating, riveted handle, induction base / 20 cm, 24 cm, 28 cm / saucepan, cutting board
Kitchen: saucepan / cooking pot / pouring lip, glass lid, measuring marks / 1.5 l, 2 l, 3 l / mixing bowl, frying pan
Kitchen: mixing bowl / batter bowl / nesting shape, silicone foot, inside scale / 1 l, 2.5 l, 4 l / baking tray, kitchen scale
Kitchen: baking tray / oven sheet / rolled rim, non-stick surface, warp-free steel / 30 cm, 35 cm, 40 cm / kitchen scale, mixing bowl
Kitchen: kitchen scale / food scale / tare button, glass top, backlit display / 3 kg, 5 kg, 10 kg / coffee grinder, baking tray
Kitchen: coffee grinder / coffee mill / conical burrs, grind dial, quiet motor / 30 g, 60 g, 100 g / french press, kitchen scale
Kitchen: french press / coffee plunger / steel mesh filter, borosilicate glass, cool-touch grip / 3 cup, 6 cup, 8 cup / coffee grinder, notebook
Cycling: bike helmet / cycle helmet / rear dial, washable pads, air channels / small, medium, large / bike light, cycling gloves
Cycling: bike light / cycle lamp / USB charging, side visibility, tool-free mount / 100 lumens, 300 lumens, 600 lumens / bike lock, headlamp
Cycling: bike lock / cycle lock / hardened shackle, two keys, frame bracket / 80 cm, 110 cm, 140 cm / saddle bag, bike helmet
Cycling: bike pump / tyre inflator / pressure gauge, both valves, folding foot / mini, track, high pressure / tyre levers, saddle bag
Cycling: tyre levers / tyre tools / hooked ends, snap-together set, reinforced nylon / set of 2, set of 3, set of 4 / bike pump, bike multitool
Cycling: bike multitool / pocket tool / hex keys, chain breaker, rubber case / 12 function, 16 function, 20 function / saddle bag, tyre levers
Cycling: saddle bag / seat pack / roll closure, reflective trim, inner pocket / 0.5 l, 1 l, 2 l / bike pump, bike multitool
Cycling: cycling gloves / riding mitts / gel palm, terry thumb, pull tabs / small, medium, large / cycling jersey, garden gloves
Cycling: cycling jersey / riding top / three back pockets, full zip, quick-dry knit / small, medium, large / bottle cage, bike helmet
Cycling: bottle cage / bottle holder / side entry, bolts included, snug grip / 70 mm, 73 mm, 76 mm / water bottle, cycling gloves
Garden: pruning shears / secateurs / bypass blades, safety catch, sap groove / 18 cm, 20 cm, 22 cm / garden gloves, rake
Garden: garden gloves / work gloves / thorn-proof cuffs, nitrile palm, breathable back / small, medium, large / pruning shears, hand trowel
Garden: hand trowel / planting trowel / depth marks, hanging loop, one-piece head / 25 cm, 30 cm, 33 cm / plant pot, garden kneeler
Garden: plant pot / planter / drainage hole, matching saucer, frost-proof wall / 12 cm, 18 cm, 25 cm / watering can, seed tray
Garden: watering can / sprinkling can / brass rose, long spout, two handles / 2 l, 5 l, 9 l / garden hose, plant pot
Garden: garden hose / water hose / anti-kink weave, brass fittings, spray nozzle / 10 m, 20 m, 30 m / watering can, wheelbarrow
Garden: seed tray / propagator / clear dome, 24 cells, drip tray / 12 cell, 24 cell, 40 cell / hand trowel, desk lamp
Garden: rake / leaf rake / spring tines, ash shaft, adjustable head / 40 cm, 50 cm, 60 cm / wheelbarrow, garden gloves
Garden: wheelbarrow / garden cart / pneumatic wheel, deep tray, rubber grips / 65 l, 85 l, 100 l / rake, garden hose
Garden: garden kneeler / kneeling bench / folding frame, thick foam, side pockets / 40 cm, 50 cm, 60 cm / seed tray, garden gloves
Music: acoustic guitar / steel-string guitar / spruce top, bone nut, sealed tuners / 1/2 size, 3/4 size, 4/4 size / guitar strings, guitar stand
Music: guitar strings / string set / bronze winding, anti-rust coating, ball ends / .010, .011, .012 / clip-on tuner, capo
Music: clip-on tuner / chromatic tuner / vibration sensor, swivel display, auto power-off / mini, standard, stage / capo, guitar strings
Music: capo / guitar clamp / one-hand spring, silicone pad, pick holder / 6 string, 12 string, classical / acoustic guitar, clip-on tuner
Music: guitar stand / instrument stand / foam yokes, folding legs, neck lock / A-frame, tubular, wall mount / gig bag, acoustic guitar
Music: gig bag / guitar case / padded neck, backpack straps, sheet pocket / 1/2 size, 3/4 size, 4/4 size / clip-on tuner, backpack
Music: microphone / vocal mic / cardioid capsule, steel grille, shock mount / dynamic, condenser, ribbon / mic stand, audio cable
Music: mic stand / boom stand / counterweight, round base, quick clutch / 90 cm, 160 cm, 210 cm / audio cable, headphones
Music: audio cable / XLR lead / braided shield, gold contacts, cable tie / 3 m, 6 m, 10 m / headphones, microphone
Music: headphones / studio cans / closed back, soft ear pads, coiled lead / 32 ohm, 80 ohm, 250 ohm / microphone, laptop stand
Office: desk lamp / task light / dimmer, flexible neck, warm light / 5 W, 8 W, 12 W / desk mat, seed tray
Office: desk mat / blotter / stitched edge, wipe-clean surface, cork back / 60 cm, 80 cm, 90 cm / laptop stand, desk lamp
Office: laptop stand / notebook riser / folding hinge, rubber stops, open back / 13 inch, 15 inch, 17 inch / laptop sleeve, headphones
Office: laptop sleeve / computer case / felt lining, magnetic flap, cable pocket / 13 inch, 15 inch, 17 inch / desk organizer, laptop stand
Office: desk organizer / pen holder / sliding drawer, phone slot, felt feet / 3 tray, 5 tray, 7 tray / fountain pen, notebook
Office: fountain pen / writing pen / steel nib, converter, screw cap / fine, medium, broad / bottled ink, notebook
Office: bottled ink / writing ink / quick-drying dye, acid-free, glass bottle / 30 ml, 50 ml, 80 ml / notebook, fountain pen
Office: notebook / journal / dotted paper, lay-flat binding, ribbon marker / A6, A5, A4 / fountain pen, pencil case
Office: pencil case / pen pouch / elastic loops, brass zip, washable canvas / 12 pens, 24 pens, 48 pens / notebook, bottled ink
Office: paper tray / letter tray / stackable frame, label window, steel mesh / 2 tier, 3 tier, 4 tier / desk organizer, desk lamp
"""  # noqa: E501


@dataclass(frozen=True)
class _Type:
    department: int
    name: str
    synonym: str
    features: tuple[str, ...]
    sizes: tuple[str, ...]
    companions: tuple[int, int]


@cache
def _types() -> tuple[_Type, ...]:
    """The product types of `TYPES`, in its order."""
    rows = []
    for text in TYPES.strip().splitlines():
        department, rest = text.split(": ", 1)
        name, synonym, features, sizes, companions = rest.split(" / ")
        rows.append((department, name, synonym, features.split(", "), sizes.split(", "), companions.split(", ")))
    names = [row[1] for row in rows]
    departments = list(DEPARTMENTS)
    return tuple(
        _Type(departments.index(row[0]), *row[1:3], tuple(row[3]), tuple(row[4]), (names.index(a), names.index(b)))
        for row in rows
        for a, b in [row[5]]
    )


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _describe(number: int, kind_number: int, line_number: int, rng: np.random.Generator) -> dict[str, str]:
    """Title, description, brand and categories of one item; the wording is drawn, the facts are not."""
    kind, line, brand = _types()[kind_number], LINES[line_number], BRANDS[line_number // 2]
    colour, manner = LOOKS[line_number]
    department = list(DEPARTMENTS)[kind.department]

    def pick(options):
        return options[int(rng.integers(len(options)))]

    def chance(probability):
        return rng.random() < probability

    noun = kind.name if chance(0.7) else kind.synonym
    size, (one, two, three) = pick(kind.sizes), rng.permutation(kind.features)
    title = pick(
        [
            f"{brand} {line} {noun.title()}, {size}",
            f"{line} {noun.title()} {size} in {colour}",
            f"{line} {manner} {noun} by {brand} ({size})",
            f"{brand} {noun.title()} {line}, {colour}",
            f"{noun.title()} {line} {size}, {manner}",
        ]
    )
    other = kind.synonym if noun == kind.name else kind.name
    uses = pick(DEPARTMENTS[department])
    sentences = [
        pick(
            [
                f"A {manner} {other} from the {line} line, made for {uses}.",
                f"The {line} {noun} is built for {uses}.",
                f"For {uses}: {_article(colour)} {other} with {three}.",
                f"{brand} designed this {line} {other} with {uses} in mind.",
            ]
        ),
        pick(
            [
                f"It comes with {one} and {two}.",
                f"Features: {one}, {two}.",
                f"We like its {two}; the {one} helps too.",
                f"Thanks to {one} it lasts for years.",
            ]
        ),
    ]
    if chance(0.85):  # the tie to the companions, as a reader can find it
        first, second = (_types()[companion].name for companion in kind.companions)
        tie = pick(
            [
                f"Pairs with the {line} {first}.",
                f"Goes well with the {line} {first} and the {line} {second}.",
                f"Complete it with the {line} {first}.",
                f"Often bought with the {line} {first}, sometimes with the {line} {second}.",
            ]
        )
        sentences.insert(int(rng.integers(1, 3)), tie)
    if chance(0.4):
        sentences.append(
            pick(
                [
                    f"Colour: {colour}.",
                    f"A gift for anyone who loves {uses}.",
                    f"Two years of guarantee from {brand}.",
                    f"Also in {pick(kind.sizes)}.",
                ]
            )
        )
    return {
        "item_id": f"D{number:04d}",
        "title": title,
        "description": " ".join(sentences),
        "brand": brand,
        "categories": f"{department} > {kind.name.title()}",
    }
