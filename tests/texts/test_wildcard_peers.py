"""What Impact Pack and Dynamic Prompts document and test, on a collection of the same shape.

Each case is a text and all results that it may have. OTHERWISE holds the cases in which we differ
on purpose, as docs/wildcards.md lists them.
"""

from __future__ import annotations

import time
from itertools import permutations

import pytest
from image_refinery.texts import WildcardFiles, expand

SEEDS = range(120)

COLLECTION = {
    "colors-cold.txt": "# cold ones\nblue\ngreen\n",
    "colors-warm.txt": "# warm ones\nred\nyellow\n",
    "referencing-colors.txt": "__colors-warm__\n__colors-cold__\n",
    "variant.txt": "{red|green}\n",
    "dupes.txt": "red\nblue\nblue\nred\n",
    "Hair Color.txt": "auburn\nblack\n",
    "JEWEL.txt": "opal\n",
    "latin.txt": "caf\u00e9\n",
    "\u00e4nder.txt": "umlaut\n",
    "\uaf43.txt": "\ubaa8\ub780 \U0001f33a\n",
    "obj/person.txt": "a nun\na judge\n",
    "level1.txt": "1 __level2__",
    "level2.txt": "2 __level3__",
    "level3.txt": "3 __level4__",
    "level4.txt": "4 __level5__",
    "level5.txt": "5 __level6__",
    "level6.txt": "6 __level7__",
    "level7.txt": "7",
    "round.txt": "__round__",
    "loras.txt": "<lora:chalk:0.7:LBW=SD-MIDD;>\n",
    "animals/all.txt": "# mine\n\n__mammals/canine__\n__mammals/feline__\n__mystical__",
    "animals/mammals/canine.txt": "dog\nwolf",
    "animals/mammals/feline.txt": "cat\ntiger",
    "animals/mystical.txt": "unicorn",
    "animals/reptiles/lizards.yaml": "- iguana\n- gecko\n",
    "animals/reptiles/snakes.txt": "cobra",
    "flavors/sour.txt": "lemon",
    "flavors/sweet.txt": "# sweet\nvanilla\nhoney",
    "flavors/pantry.json": '{"bitter": ["coffee", "chicory"], "size": 3}',
    "pantry.yaml": "clothing:\n  - Shirt\n  - Shoes\n"
    "artists:\n  finnish:\n    - Eero J\u00e4rnefelt\n  dutch: [Piet Mondrian, Vincent van Gogh]\n"
    "  moonbase: only one\n  1234: 5678\n  number: 12345\n  nothing: ''\n",
    "cars.yaml": "cars:\n  ford:\n    types: [coupe, roadster]\n  deere:\n    types: [tractor]\n",
    "shapes.yaml": "# a list only\n- circle\n- square\n",
    "scalar.yaml": "just a text\n",
    "weighted.yaml": "weighted-animals:\n  heavy:\n    - 50::elephant\n    - 20.5::rhino\n"
    "  light:\n    - { weight: 1, text: mouse }\n    - { weight: 3, content: cat }\n"
    "  odd: ['{3::|looking up|looking down}']\n",
    "sky.yaml": "astronomy:\n  Celestial-Bodies:\n    - Star\n    - Planet\n"
    "surface-swap:\n  - swap the surfaces for\n",
    "Big List.yml": "Deep Key:\n  Inner Key: [found]\n",
    "toys/plush.yaml": "- |\n  # __toys/plush__\n  # Steps: 35\n\n  plush toy,\n  soft light\n",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> WildcardFiles:
    top = tmp_path_factory.mktemp("collection")
    for name, text in COLLECTION.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("cp1252" if name == "latin.txt" else "utf-8"))
    return WildcardFiles([top])


def joined(separator: str, words: str, count: int) -> set[str]:
    return {separator.join(chosen) for chosen in permutations(words.split(), count)}


COLD, WARM = {"blue", "green"}, {"red", "yellow"}
COLORS = COLD | WARM
MAMMALS = {"dog", "wolf", "cat", "tiger"}
ANIMALS = MAMMALS | {"unicorn"}
LEVELS = "1 2 3 4 5 6 7"

SAME: list[tuple[str, set[str]]] = [
    # texts without any form
    ("hello world", {"hello world"}),
    ("good-bye good_bye", {"good-bye good_bye"}),
    ("I, love. punctuation", {"I, love. punctuation"}),
    ("Test \u00e4nder\u014d", {"Test \u00e4nder\u014d"}),
    ("Test [low emphasis:0.4]", {"Test [low emphasis:0.4]"}),
    ("Test (high emphasis:1.4)", {"Test (high emphasis:1.4)"}),
    ("Unmatched } bracket", {"Unmatched } bracket"}),
    ("[cat|dog] [cat:dog:0.25]", {"[cat|dog] [cat:dog:0.25]"}),
    ("", {""}),
    # choices
    ("{cat|dog}", {"cat", "dog"}),
    ("A {red|} rose", {"A red rose", "A  rose"}),
    ("{|red|blue}", {"", "red", "blue"}),
    ("{|hot,}{|mild,}", {"", "hot,", "mild,", "hot,mild,"}),
    ("{new york|washing-ton!|\u00e4nder}", {"new york", "washing-ton!", "\u00e4nder"}),
    ("A {red|green {square|circle}}", {"A red", "A green square", "A green circle"}),
    ("{a|{d|e|f}|c}", {"a", "d", "e", "f", "c"}),
    ("{A|B} {C|D}", {"A C", "A D", "B C", "B D"}),
    ("with a bra}ce but {one|one}", {"with a bra}ce but one"}),
    ("1{girl has {blue|red __obj/person__}|boy}",
     {"1girl has blue", "1girl has red a nun", "1girl has red a judge", "1boy"}),
    # weights
    ("{1::cat|2::dog|3::bird} x", {"cat x", "dog x", "bird x"}),
    ("{0.2::cat|dog|.5::bird}", {"cat", "dog", "bird"}),
    ("{1::a|0::b}", {"a"}),
    ("{5::red|black}", {"red", "black"}),
    # several
    ("{0$$a|b}", {""}),
    ("({0$$a|b} {1$$c|d}),", {"( c),", "( d),"}),
    ("{0-1$$a|b}", {"", "a", "b"}),
    ("{1-2$$/$$a|b}", {"a", "b", "a/b", "b/a"}),
    ("{-2$$/$$a|b}", {"a", "b", "a/b", "b/a"}),
    ("{1-$$/$$a|b}", {"a", "b", "a/b", "b/a"}),
    ("{2$$ and $$a|b|c}", joined(" and ", "a b c", 2)),
    ("{2$$  $$a|b}", {"a  b", "b  a"}),
    ("{2$$, $$a|b}", {"a, b", "b, a"}),
    ("{3$$,$$a|b}", {"a,b", "b,a"}),
    ("{1-2$$ or $$a|b}", {"a", "b", "a or b", "b or a"}),
    ("{1$$A|{2$$ and $$X|Y}}", {"A", "X and Y", "Y and X"}),
    ("{2$$+$$a|b}{1$$c|c}", {"a+bc", "b+ac"}),
    ("I love {2$$|$$green|blue} roses", {"I love green|blue roses", "I love blue|green roses"}),
    ("{2$$ | $$a|b}", {"a | b", "b | a"}),
    ("{2$$||$$a|b}", {"a||b", "b||a"}),
    # names
    ("__colors-cold__", COLD),
    ("__colors-cold__ world", {"blue world", "green world"}),
    (",__colors-cold__", {",blue", ",green"}),
    ("(__colors-warm__:2.3)", {"(red:2.3)", "(yellow:2.3)"}),
    ("__JEWEL__ __jewel__ __Jewel__", {"opal opal opal"}),
    ("__\u00e4nder__", {"umlaut"}),
    ("__\uaf43__", {"\ubaa8\ub780 \U0001f33a"}),
    ("__obj/person__", {"a nun", "a judge"}),
    ("__person__", {"a nun", "a judge"}),
    ("__obj\\person__", {"a nun", "a judge"}),
    ("__hair-color__", {"auburn", "black"}),
    ("__Hair Color__", {"auburn", "black"}),
    ("__Hair-C*__", {"auburn", "black"}),
    ("__variant__", {"red", "green"}),
    ("__referencing-colors__", COLORS),
    ("__dupes__", {"red", "blue"}),
    ("__level1__", {LEVELS}),
    ("__loras__", {"<lora:chalk:0.7:LBW=SD-MIDD;>"}),
    ("{__colors-cold__|x}", {*COLD, "x"}),
    ("{a __colors-cold__ b|__shapes__}", {"a blue b", "a green b", "circle", "square"}),
    ("{2$$ $$__colors-cold__}", {"blue green", "green blue"}),
    ("{2$$-$$__colors-cold__|x}", {"blue-x", "green-x", "x-blue", "x-green"}),
    ("{1-2$$/$$__colors-cold__}", {*COLD, "blue/green", "green/blue"}),
    # globs and folders
    ("__colors*__", COLORS),
    ("__colors-*__", COLORS),
    ("__animals/mammals/*__", MAMMALS),
    ("__animals/m*__", {*MAMMALS, "unicorn"}),
    ("__*/canine__", {"dog", "wolf"}),
    ("__**/feline__", {"cat", "tiger"}),
    ("__flavors/*__", {"lemon", "vanilla", "honey", "coffee", "chicory"}),
    ("__flavors\\*__", {"lemon", "vanilla", "honey", "coffee", "chicory"}),
    ("__reptiles__", {"iguana", "gecko", "cobra"}),
    ("__animals/reptiles__", {"iguana", "gecko", "cobra"}),
    # references of a collection in a folder
    ("__animals/all__", ANIMALS),
    ("__mammals/canine__", {"dog", "wolf"}),
    ("__mammals/*__", MAMMALS),
    ("__animals/**__", {*ANIMALS, "iguana", "gecko", "cobra"}),
    # YAML and JSON
    ("__clothing__", {"Shirt", "Shoes"}),
    ("__artists/finnish__", {"Eero J\u00e4rnefelt"}),
    ("__artists/dutch__", {"Piet Mondrian", "Vincent van Gogh"}),
    ("__artists/moonbase__", {"only one"}),
    ("__artists/*__", {"Eero J\u00e4rnefelt", "Piet Mondrian", "Vincent van Gogh", "only one"}),
    ("__cars/ford/types__", {"coupe", "roadster"}),
    ("__cars/*/types__", {"coupe", "roadster", "tractor"}),
    ("__types__", {"coupe", "roadster", "tractor"}),
    ("__cars__", {"coupe", "roadster", "tractor"}),
    ("__shapes__", {"circle", "square"}),
    ("__animals/reptiles/lizards__", {"iguana", "gecko"}),
    ("__flavors/bitter__", {"coffee", "chicory"}),
    ("__bitter__", {"coffee", "chicory"}),
    ("__weighted-animals/heavy__", {"elephant", "rhino"}),
    ("__weighted-animals/light__", {"mouse", "cat"}),
    ("__weighted-animals/odd__", {"", "looking up", "looking down"}),
    ("__astronomy/Celestial-Bodies__", {"Star", "Planet"}),
    ("__surface-swap__", {"swap the surfaces for"}),
    ("__deep-key/inner-key__", {"found"}),
    ("{2$$ $$__shapes__}", {"circle square", "square circle"}),
    ("__toys/plush__", {"plush toy,\nsoft light"}),
    # a comment in a choice
    ("{\n  # 60% A\n  0.6::A|\n  # 40% B\n  0.4::B}", {"A", "B"}),
    ("{x\n# | commented out\n|y}", {"x\n", "y"}),
]  # fmt: skip

STAYS = [
    # variables
    "${season=!__colors-cold__}",
    "${season=__colors-cold__}",
    "${season={a|b}}",
    "${animal ?= cat}",
    "${animal ?=! {a|b}}",
    "${animal:dog}",
    "${animal:{a|b}}",
    "${subject}",
    # names with values or choices
    "__colors-cold(animal=fox)__",
    "__colors-cold(animal=fox,color=red)__",
    "__colors-cold(color={A|B|C})__",
    "__path/to/${subject}__",
    "__${pallette:warm}_colors__",
    "__locations/${room: dining room }/chairs__",
    "__light/source/{indoor|outdoor}__",
    # samplers
    "{~red|green|blue}",
    "{!red|green}",
    "{@0.2::red|0.4::green}",
    "{~1-3$$ and $$red|green}",
    "{!__colors-cold__}",
    "__~colors-cold__",
    "__@colors-cold__",
    # a wrapper
    "%{__variant__$${fox|cow}}",
    "%{happy ... on a meadow$${fox|cow}}",
    "%{ {cool|hot} ...$$x}",
    # a count
    "3#__colors-cold__",
    "{2$$, $$3#__colors-cold__}",
    # names that are not there
    "__missing__",
    "__scalar__",
    "__artists/1234__",
    "__artists/number__",
    "__flavors/size__",
    "__../cant_touch_this__",
    "__..\\cant_touch_this__",
    "__round__",
]

OTHERWISE: list[tuple[str, set[str]]] = [
    ("{a} {}", {"{a} {}"}),
    ("{cat|dog", {"{cat|dog"}),
    ("\\{a|b\\}", {"{a|b}"}),
    ("\\(c\\)", {"\\(c\\)"}),
    ("color #ff0000 # x", {"color #ff0000 # x"}),
    ("# A comment\n{a|a}", {"# A comment\na"}),
    ("three // x\nfour", {"three // x\nfour"}),
    ("{2$$a|b}", {"a, b", "b, a"}),
    ("{2$$ 1|2}", {" 1, 2", "2,  1"}),
    ("{ a | b }", {" a ", " b "}),
    ("{$|\u20ac}", {"$", "\u20ac"}),
    ("{2$$ $ $$a|b}", {"a $ b", "b $ a"}),
    ("__colors-cold__ __colors-cold__", {"blue green", "green blue"}),
    ("{2$$ $$__colors-cold__|__colors-cold__}", {"blue green", "green blue"}),
    ("{3$$/$$__colors-cold__}", {"blue/green", "green/blue"}),
    ("__latin__", {"caf\u00e9"}),
    ("__*/shapes__ __**/shapes__", {"__*/shapes__ circle", "__*/shapes__ square"}),
    ("__colors_cold__", {"__colors_cold__"}),
    ("__*cold__", COLD),
    ("{all$$ + $$__colors-cold__}", {"blue + green"}),
    ("<lora:x:1> [SEP] [ASC]", {"<lora:x:1> [SEP] [ASC]"}),
    ("{@anna|@ben} {~50|~60}", {f"{a} {b}" for a in ("@anna", "@ben") for b in ("~50", "~60")}),
    ("costs ${5|10}, 50%{!|?}", {f"costs ${a}, 50%{b}" for a in (5, 10) for b in "!?"}),
]


def results(text: str, files: WildcardFiles) -> set[str]:
    return {expand(text, files, seed).text for seed in SEEDS}


@pytest.mark.parametrize(("text", "wanted"), SAME)
def test_the_same_results(text: str, wanted: set[str], files: WildcardFiles) -> None:
    found = results(text, files)
    if "\n  # " in text:
        found = {one.strip() for one in found}
    assert found == wanted
    assert not expand(text, files, 0).problems


@pytest.mark.parametrize("text", STAYS)
def test_what_is_not_known_stays_whole_and_is_reported(text: str, files: WildcardFiles) -> None:
    for before, after in (("", ""), ("a ", " b"), ("\n", ".")):
        for seed in range(5):
            result = expand(f"{before}{text}{after}", files, seed)
            assert result.text == f"{before}{text}{after}"
            assert len(result.problems) == 1 and result.problems[0].endswith(".")
    chosen = expand(f"{{{text}|{text}}}", files, 1)
    assert chosen.text == text and chosen.problems, "in a choice, too"


@pytest.mark.parametrize(("text", "wanted"), OTHERWISE)
def test_where_we_differ_on_purpose(text: str, wanted: set[str], files: WildcardFiles) -> None:
    assert results(text, files) == wanted


def test_the_cases_are_as_many_as_were_tried() -> None:
    assert len(SAME) + len(STAYS) + len(OTHERWISE) >= 117


def test_weights_of_collections_count(files: WildcardFiles) -> None:
    weights = {line.text: line.weight for line in files.lines("weighted-animals/*")}
    assert weights["elephant"] == 50 and weights["rhino"] == 20.5
    assert weights["mouse"] == 1 and weights["cat"] == 3


def test_a_form_says_what_to_write(files: WildcardFiles) -> None:
    assert expand("3#__variant__ and 3#__variant__", files, 0).problems == (
        "3#__variant__ stays as it is: write {3$$__variant__}.",
    )
    (problem,) = expand("${s=!__variant__} in ${s}", files, 0).problems
    assert problem == (
        "${s=!__variant__} stays as it is: variables of Dynamic Prompts are not supported."
    )


@pytest.mark.parametrize(
    "text",
    ["${a=" * 20_000, "${a=" * 9_000 + "}" * 9_000, "%{" * 40_000, "1#__" * 30_000,
     "__a(x=1" * 20_000, "__a{b}" * 20_000, "{~a|" * 20_000 + "}" * 20_000,
     "{a\n# |" * 9_000 + "}" * 9_000, "{2$$" + "|" * 50_000 + "}", "9" * 200_000],
    ids=["open", "variables", "wraps", "counts", "values", "braces", "samplers", "comments",
         "bars", "digits"],
)  # fmt: skip
def test_long_texts_of_such_forms_end(text: str, files: WildcardFiles) -> None:
    begun = time.monotonic()
    expand(text, files, 0)
    assert time.monotonic() - begun < 5.0
