"""Invented persons: the same by number, families, numbers that check and belong to nobody, proxies."""

import numpy as np
import pandas as pd
import pytest

from mktai_kit.settings import KitError
from mktai_kit.world.engine import Draws, change, table, to_frame
from mktai_kit.world.persons import (
    AGE_BANDS,
    AS_OF,
    COUNTRIES,
    GENDERS,
    LANGUAGES,
    LETTERS,
    REGIONS,
    PersonParams,
    check_letter,
    demographics,
    people,
    permuted,
    plain,
    the_book,
)

P, DRAWS, BOOK = PersonParams(), Draws(7, "retail"), the_book()
N = 40_000


def same(a, b):
    """Whether two People are equal, infinite and text included."""
    flat = lambda who: [x for v in vars(who).values() for x in (v if isinstance(v, tuple) else [v])]
    return all(np.array_equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def part(who, at):
    """Some of the persons."""
    out = {k: type(v)(*(x[at] for x in v)) if isinstance(v, tuple) else v for k, v in vars(who).items()}
    return type(who)(**{k: v[at] if isinstance(v, np.ndarray) and v.ndim else v for k, v in out.items()})


@pytest.fixture(scope="module")
def crowd():
    return people(P, DRAWS, np.arange(1, N + 1))


def test_a_person_depends_on_nobody_else(crowd):
    chosen = np.array([1, 17, 4, 39_999, 20_001, 2])
    assert same(people(P, DRAWS, chosen), part(crowd, chosen - 1))
    assert same(people(P, DRAWS, np.arange(20_001, N + 1)), part(crowd, slice(20_000, None)))


def test_same_seed_same_persons_other_seed_others(crowd):
    assert same(people(P, Draws(7, "retail"), crowd.ids), crowd)
    other = people(P, Draws(8, "retail"), crowd.ids)
    assert (other.surname == crowd.surname).mean() < 0.05
    assert (other.id_number == crowd.id_number).mean() < 0.3  # those in the US have none


def test_ids_start_at_one():
    with pytest.raises(KitError, match="start at 1"):
        people(P, DRAWS, np.array([0, 1]))
    assert len(people(P, DRAWS, np.array([], np.int64))) == 0


def test_words_are_clean_and_in_the_book_once():
    for section, start in BOOK.start.items():
        if start < BOOK.n:
            words = BOOK.write(BOOK.codes(section)).to_pylist()
            assert all(w and w == w.strip() and "\n" not in w for w in words), section
            if not section.startswith(("type", "rare")):
                assert len(set(words)) == len(words), section
    assert plain("Peña Íñigo") == "Pena Inigo"
    for section in ("given es male older", "surname es", "rare es", "surname en"):
        mail = BOOK.write(BOOK.codes(section), 6).to_pylist()
        assert all(w.isascii() and w.isalnum() and w == w.lower() for w in mail)


def test_check_letters_hold(crowd):
    assert check_letter([12345678, 0, 11111111, 99999999]) == ["Z", "T", "H", "R"]
    spanish = crowd.id_kind <= 1
    assert len(LETTERS) == 23 and len(set(LETTERS.tolist())) == 23
    assert (crowd.country[spanish] == COUNTRIES.index("ES")).all()
    assert (crowd.country == COUNTRIES.index("US")).mean() == pytest.approx((crowd.id_kind == 3).mean())


def test_numbers_are_nobody_elses_and_lie_where_none_are_given_out(crowd):
    for kind, (low, high) in enumerate(
        [(90_000_000, 99_999_999), (25_000_000, 29_999_999), (1_900_000_000, 1_999_999_999)]
    ):
        numbers = crowd.id_number[crowd.id_kind == kind]
        assert len(np.unique(numbers)) == len(numbers) > 500 and low <= numbers.min() and numbers.max() <= high
    assert len(np.unique(crowd.mobile)) == N
    spain, colombia, states = (crowd.country == c for c in range(3))
    assert set(crowd.mobile[spain] // 10_000_000) == {75, 76, 77, 78, 79}
    assert set(crowd.mobile[colombia] // 100_000_000) == {36, 37, 38, 39}
    assert set(crowd.landline[spain] // 10_000_000) == {99} and set(crowd.landline[colombia] // 10_000_000) == {603}
    for numbers in (crowd.mobile, crowd.landline, crowd.old_mobile):
        area, exchange = numbers[states] // 10_000_000, numbers[states] // 10_000 % 1000
        assert (area // 10 % 10 == 9).all() and (exchange >= 200).all()  # no area code has a 9 in the middle
    assert crowd.home.postal[spain].min() >= 60_000, "Spanish provinces end at 52"
    assert crowd.home.postal[colombia].min() >= 300_000


@pytest.mark.parametrize("size", [1, 2, 97, 1000, 4096, 5000])
def test_permuted_is_a_permutation(size):
    assert np.array_equal(np.sort(permuted(DRAWS, "any", np.arange(size), size)), np.arange(size))


def test_permuted_has_no_order():
    ids = np.arange(1, 500_001)
    numbers = permuted(DRAWS, "any", ids, 2**32)
    assert len(np.unique(numbers)) == len(ids)
    assert abs(np.corrcoef(ids, numbers)[0, 1]) < 0.006 and abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.006
    assert not np.array_equal(numbers, permuted(DRAWS, "other", ids, 2**32))


def test_families_share_what_families_share(crowd):
    home = crowd.household - 1
    for shared in ("region", "country", "language", "landline", "income_band", "moved"):
        values = getattr(crowd, shared)
        assert np.array_equal(values, values[home]), shared
    assert all(np.array_equal(x, x[home]) for x in crowd.home) and all(
        np.array_equal(x, x[home]) for x in crowd.old_home
    )
    size = np.bincount(crowd.household, minlength=N + 1)[crowd.household]
    assert (size > 1).mean() == pytest.approx(P.family_share, abs=0.015)
    mails = pd.MultiIndex.from_arrays(list(crowd.mail))
    shared = mails == mails[home]
    assert (shared & (size > 1) & (crowd.role > 0)).sum() / ((size > 1) & (crowd.role > 0)).sum() == pytest.approx(
        P.family_email, abs=0.02
    )
    children = np.flatnonzero((crowd.role >= 2) & (crowd.language == 0))
    parents = np.stack([crowd.maiden[home[children]], crowd.maiden[home[children] + 1]])
    ours = np.stack([crowd.surname[children], crowd.surname2[children]])
    assert np.array_equal(np.sort(ours, 0), np.sort(parents, 0))
    older = np.minimum(crowd.age[home[children]], crowd.age[home[children] + 1])
    assert (older - crowd.age[children] > 14).all() and crowd.age.min() >= 16


def test_mails_are_almost_always_ones_own(crowd):
    alone = crowd.household == crowd.ids
    mails = pd.MultiIndex.from_arrays([x[alone] for x in crowd.mail])
    assert mails.duplicated().mean() < 0.002


def test_wives_who_take_the_name(crowd):
    changed = np.isfinite(crowd.wed)
    assert (crowd.language[changed] == 1).all() and (crowd.age[changed] - crowd.wed[changed] >= 17).all()
    partner = np.flatnonzero(changed & (crowd.role == 1))
    assert len(partner) > 50 and np.array_equal(crowd.surname[partner], crowd.surname[crowd.household[partner] - 1])
    none = people(change(P, takes_name=0.0), DRAWS, crowd.ids)
    assert np.array_equal(none.surname, none.maiden) and np.isinf(none.wed).all()


def test_attributes_and_their_proxies(crowd):
    age = np.floor(crowd.age)
    assert np.array_equal(crowd.age_band, np.searchsorted([25, 35, 45, 55, 65], age, side="right"))
    assert (AS_OF - crowd.birth == np.floor(crowd.age * 365.25).astype("timedelta64[D]")).all()
    words = np.array(BOOK.words)[crowd.given]
    for name, sex in (("Carmen", 0), ("José", 1), ("Mary", 0), ("James", 1)):
        at = (words == name) & (crowd.gender < 2)
        assert (crowd.gender[at] == sex).all() and at.sum() > 20
    older = np.isin(crowd.given, BOOK.codes("given es male older"))
    younger = np.isin(crowd.given, BOOK.codes("given es male younger"))
    assert crowd.age[older].mean() > crowd.age[younger].mean() + 15
    by_region = pd.Series(crowd.language == LANGUAGES.index("en")).groupby(crowd.region).mean()
    assert by_region[REGIONS.index("Northeast")] > 0.85 and by_region[REGIONS.index("Norte")] < 0.03
    rich = pd.Series(crowd.income_band >= 3).groupby(crowd.home.postal).agg(["mean", "size"])
    spread = rich.loc[rich["size"] > 80, "mean"].std()
    assert spread > 0.15
    assert (crowd.gender == GENDERS.index("other")).mean() == pytest.approx(P.other_gender, abs=0.002)


def test_shares_do_not_depend_on_size(crowd):
    few = part(crowd, slice(0, N // 8))
    for name in ("age_band", "region", "income_band", "gender"):
        a, b = (np.bincount(getattr(who, name), minlength=10) / len(who) for who in (few, crowd))
        assert np.abs(a - b).max() < 0.025, name


def test_lives_change_at_their_rates(crowd):
    for name, rate in (
        ("moved", P.moves_per_year),
        ("new_mail", P.email_changes_per_year),
        ("new_phone", P.phone_changes_per_year),
    ):
        assert (getattr(crowd, name) < 5).mean() == pytest.approx(1 - np.exp(-5 * rate), abs=0.012), name
    never = people(change(P, moves_per_year=0.0), DRAWS, crowd.ids[:100])
    assert np.isinf(never.moved).all()
    assert (crowd.home.city == crowd.old_home.city).mean() > P.moves_within_city


def test_demographics_fit_the_contract(crowd):
    from mktai_kit.data.contracts import check

    frame = to_frame(table(**demographics(crowd)))
    assert check("customers", frame)[1] == []
    assert list(frame["age_band"].cat.categories) == list(AGE_BANDS)
