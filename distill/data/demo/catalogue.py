"""The items of the demo: product types crossed with design lines ("Aurora" tent, "Basalt" kettle, ...).

A grammar writes their titles and descriptions. Most descriptions name the companions that go with the item.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

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
LOOKS = (  # colour and manner of each line, for its texts
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
DEPARTMENTS = {  # department: uses that its descriptions may name
    "Camping": ("camping", "hiking and camping", "the outdoors", "weekends in the tent"),
    "Kitchen": ("the kitchen", "cooking", "home cooks", "everyday cooking"),
    "Cycling": ("cycling", "bike commuters", "long rides", "life on two wheels"),
    "Garden": ("the garden", "gardening", "planting and pruning", "balcony and garden"),
    "Music": ("music", "making music", "stage and studio", "practice at home"),
    "Office": ("the office", "desk work", "studying and writing", "the home office"),
}
# department: name / synonym / features / sizes / first companion, second companion; one type a line
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
class ProductType:
    """A kind of product.

    Attributes:
        department: index into `DEPARTMENTS`.
        name: as its companions name it.
        synonym: another name.
        features: phrases for its descriptions.
        sizes: phrases for its titles.
        companions: indices into `product_types()`.
    """

    department: int
    name: str
    synonym: str
    features: tuple[str, ...]
    sizes: tuple[str, ...]
    companions: tuple[int, int]


@cache
def product_types() -> tuple[ProductType, ...]:
    """Parse the product types of `TYPES`, in its order."""
    rows = []
    for text in TYPES.strip().splitlines():
        department, rest = text.split(": ", 1)
        name, synonym, features, sizes, companions = rest.split(" / ")
        rows.append((department, name, synonym, features.split(", "), sizes.split(", "), companions.split(", ")))
    names = [row[1] for row in rows]
    departments = list(DEPARTMENTS)
    return tuple(
        ProductType(
            departments.index(row[0]), *row[1:3], tuple(row[3]), tuple(row[4]), (names.index(a), names.index(b))
        )
        for row in rows
        for a, b in [row[5]]
    )


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def describe_item(number: int, type_number: int, line_number: int, rng: np.random.Generator) -> dict[str, str]:
    """Write title, description, brand and categories of an item; the wording is drawn, the facts are fixed."""
    kind, line, brand = product_types()[type_number], LINES[line_number], BRANDS[line_number // 2]
    colour, manner = LOOKS[line_number]
    department = list(DEPARTMENTS)[kind.department]

    def pick(options):
        return options[int(rng.integers(len(options)))]

    def chance(probability):
        return rng.random() < probability

    noun = kind.name if chance(0.7) else kind.synonym
    size, (first, second, third) = pick(kind.sizes), rng.permutation(kind.features)
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
                f"For {uses}: {_article(colour)} {other} with {third}.",
                f"{brand} designed this {line} {other} with {uses} in mind.",
            ]
        ),
        pick(
            [
                f"It comes with {first} and {second}.",
                f"Features: {first}, {second}.",
                f"We like its {second}; the {first} helps too.",
                f"Thanks to {first} it lasts for years.",
            ]
        ),
    ]
    if chance(0.85):  # names the companions
        near, far = (product_types()[companion].name for companion in kind.companions)
        tie = pick(
            [
                f"Pairs with the {line} {near}.",
                f"Goes well with the {line} {near} and the {line} {far}.",
                f"Complete it with the {line} {near}.",
                f"Often bought with the {line} {near}, sometimes with the {line} {far}.",
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
