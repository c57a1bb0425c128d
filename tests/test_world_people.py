"""Records of two systems: errors at their rates, nothing that leaks the link, determinism, gaps, consent."""

import pickle
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mktai_kit.data.contracts import check
from mktai_kit.settings import KitError
from mktai_kit.world.engine import Draws, change, describe_params, to_frame
from mktai_kit.world.people import (
    ERRORS,
    NO_ERRORS,
    PURPOSES,
    SYSTEMS,
    PeopleParams,
    agreement,
    consents,
    match_quality,
    people,
    persons,
    records,
    wishes,
)
from mktai_kit.world.persons import check_letter, plain

P, DRAWS, N = PeopleParams(), Draws(7, "retail"), 30_000
CLEAN = change(P, **NO_ERRORS)
IDS = np.arange(1, N + 1)


def read(found):
    """Identities with the person of each record."""
    frame = to_frame(found.identities)
    return frame.assign(customer_id=found.links["customer_id"].to_numpy())


@pytest.fixture(scope="module")
def crowd():
    return people(P, DRAWS, IDS)


@pytest.fixture(scope="module")
def truth(crowd):
    return to_frame(persons(crowd)).set_index("customer_id")


@pytest.fixture(scope="module")
def both(crowd):
    return {system: records(P, DRAWS, crowd, system) for system in SYSTEMS}


@pytest.fixture(scope="module")
def joined(both):
    """Identities and links of both systems, as a company and its seal would have them."""
    return tuple(pd.concat([to_frame(getattr(both[s], kind)) for s in SYSTEMS]) for kind in ("identities", "links"))


def test_params_are_documented_and_travel_to_workers():
    known = describe_params(PeopleParams)
    assert len(known) > 100 and known["meaning"].str.len().min() > 5 and known["source"].notna().all()
    assert pickle.loads(pickle.dumps(P)) == P
    with pytest.raises(KitError, match="did you mean 'nickname_web'"):
        change(P, nickname_wed=0.1)


def test_tables_fit_the_contracts(both, crowd):
    for system in SYSTEMS:
        assert check("identities", to_frame(both[system].identities), as_of="2025-01-01")[1] == []
        assert check("consent", to_frame(consents(P, DRAWS, crowd, system)), as_of="2025-01-01")[1] == []


def test_truth_has_valid_check_letters_and_reserved_mails(truth):
    spanish = truth.loc[truth["country"].eq("ES"), "national_id"]
    number = spanish.str[:-1].str.replace("X", "0").str.replace("Y", "1").str.replace("Z", "2").astype(int)
    assert spanish.str.fullmatch(r"(\d{8}|Z\d{7})[A-Z]").all()
    assert (spanish.str[-1].to_numpy() == np.array(check_letter(number))).all() and len(spanish) > 10_000
    assert truth["national_id"].isna().equals(truth["country"].eq("US"))
    assert truth.loc[truth["country"].eq("CO"), "national_id"].str.fullmatch(r"19\d{8}").all()
    assert truth["email"].str.fullmatch(r"[a-z0-9._]+@[a-z]+\.example").all()
    assert truth.loc[truth["country"].eq("ES"), "phone"].str.fullmatch(r"7[5-9]\d{7}").all()
    assert truth["postal_code"].str.len().eq(np.where(truth["country"].eq("CO"), 6, 5)).all()
    assert truth.drop(columns=["national_id"]).notna().all().all()


def test_no_record_holds_an_address_that_may_exist(both):
    for system in SYSTEMS:
        mails = pd.Series(both[system].identities["email"].to_pandas()).dropna()
        assert mails[mails.str.contains("@")].str.endswith(".example").all()
        assert mails[~mails.str.endswith(".example")].isin(["n/a", "no tiene"]).all()


def test_a_slip_does_not_make_a_real_number(crowd):
    slips = change(CLEAN, typo_phone_web=1.0, typo_national_id_web=1.0, landline_web=0.3)
    frame = read(records(slips, DRAWS, crowd, "web"))
    start = {"ES": r"(7[5-9]|99)\d{7}", "CO": r"(3[6-9]\d|603)\d{7}", "US": r"\d9\d{8}"}
    for country, form in start.items():
        assert frame.loc[frame["country"].eq(country), "phone"].str.fullmatch(form).all(), country
    assert frame["national_id"].dropna().str.fullmatch(r"9\d{7}[A-Z]|Z[5-9]\d{6}[A-Z]|19\d{8}").all()


def test_nothing_in_the_ids_or_the_order_leaks_the_link(both):
    links = {s: to_frame(both[s].links) for s in SYSTEMS}
    for s in SYSTEMS:
        assert links[s]["record_id"].is_unique and links[s]["record_id"].is_monotonic_increasing
        assert np.array_equal(links[s]["record_id"], both[s].identities["record_id"].to_numpy())
        assert abs(np.corrcoef(np.arange(len(links[s])), links[s]["customer_id"])[0, 1]) < 0.02
        twins = links[s][links[s]["customer_id"].duplicated(keep=False)].sort_values(["customer_id", "record_id"])
        assert twins["record_id"].diff()[1::2].median() > 1e8, "two records of one person are not neighbours"
        assert set(both[s].identities.column_names) & {"customer_id", "household_id"} == set()
    pair = links["web"].merge(links["store"], on="customer_id")
    assert abs(pair["record_id_x"].corr(pair["record_id_y"], method="spearman")) < 0.025
    bits = [(pair[f"record_id_{x}"].to_numpy()[:, None] - 1_000_000_000 >> np.arange(32)) & 1 for x in "xy"]
    assert np.abs((bits[0] == bits[1]).mean(0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(len(pair))


@pytest.mark.parametrize("system", SYSTEMS)
def test_blocks_and_order_do_not_matter(both, system):
    whole = to_frame(both[system].identities).set_index("record_id")
    blocks = [
        to_frame(records(P, DRAWS, people(P, DRAWS, ids), system).identities) for ids in (IDS[:12_344], IDS[12_344:])
    ]
    parts = pd.concat([b.set_index("record_id") for b in blocks])
    pd.testing.assert_frame_equal(parts.sort_index(), whole.sort_index())
    alone = records(P, DRAWS, people(P, DRAWS, np.array([5, 3])), system)
    assert set(alone.links["record_id"].to_pylist()) <= set(whole.index)


def test_same_seed_same_bytes(both, crowd):
    again = records(P, DRAWS, people(P, DRAWS, IDS), "web")
    assert again.identities.equals(both["web"].identities) and again.links.equals(both["web"].links)
    other = records(P, Draws(8, "retail"), crowd, "web")
    assert not set(other.links["record_id"].to_pylist()[:1000]) & set(both["web"].links["record_id"].to_pylist())


def test_who_is_where(both, crowd):
    share = {s: np.isin(IDS, both[s].links["customer_id"].to_numpy()) for s in SYSTEMS}
    assert (share["web"] | share["store"]).all()
    assert (share["web"] & ~share["store"]).mean() == pytest.approx(P.web_only, abs=0.01)
    assert (share["store"] & ~share["web"]).mean() == pytest.approx(P.store_only, abs=0.01)
    assert crowd.age[share["store"]].mean() > crowd.age[share["web"]].mean() + 1
    rows = sum(f.links.num_rows for f in both.values())
    assert 1.38 < rows / N < 1.5
    for s in SYSTEMS:
        once = share[s].sum()
        assert both[s].links.num_rows / once - 1 == pytest.approx(getattr(P, f"twice_{s}"), abs=0.006)


def test_without_errors_the_records_say_what_is_true(truth):
    clean = people(CLEAN, DRAWS, IDS[:5000])
    for system in SYSTEMS:
        frame = read(records(CLEAN, DRAWS, clean, system)).set_index("customer_id")
        told = truth.loc[frame.index]
        for column in (
            "name",
            "email",
            "phone",
            "address",
            "city",
            "postal_code",
            "national_id",
            "birth_date",
            "gender",
        ):
            assert frame[column].astype(object).equals(told[column].astype(object)), column


# Column and how an error shows in it; where only some records can err, the share of those that can is worked out from the truth.
SHOWS = {
    "typo_name": ("name", None),
    "typo_address": ("address", None),
    "typo_city": ("city", None),
    "typo_postal_code": ("postal_code", None),
    "typo_national_id": ("national_id", lambda t: t["national_id"].notna()),
    "typo_phone": ("phone", None),
    "typo_email": ("email", None),
    "typo_provider": ("email", None),
    "day_month": ("birth_date", lambda t: (t["birth_date"].dt.day <= 12) & (t["birth_date"].dt.day != t["birth_date"].dt.month)),
    "wrong_gender": ("gender", lambda t: t["gender"].ne("other")),
    "no_accents": ("name", lambda t: t["name"].map(plain) != t["name"]),
    "upper_case": ("name", None),
    "lower_case": ("name", None),
    "broken_accents": ("name", lambda t: t["name"].map(plain) != t["name"]),
    "landline": ("phone", None),
    "phone_prefix": ("phone", None),
    "phone_spaced": ("phone", None),
    "id_bare": ("national_id", lambda t: t["country"].eq("ES")),
    "id_dotted": ("national_id", lambda t: t["national_id"].notna()),
    "street_short": ("address", None),
    "surname_first": ("name", None),
    "dummy_email": ("email", None),
    "dummy_phone": ("phone", None),
    "dummy_national_id": ("national_id", lambda t: t["national_id"].notna()),
    "dummy_birth_date": ("birth_date", None),
    "missing_phone": ("phone", None),
    "missing_address": ("address", None),
    "missing_postal_code": ("postal_code", None),
    "missing_national_id": ("national_id", lambda t: t["national_id"].notna()),
    "missing_gender": ("gender", None),
}  # fmt: skip


@pytest.mark.parametrize("error", SHOWS)
def test_errors_come_at_their_rates(error, crowd, truth):
    column, can = SHOWS[error]
    rate = 0.2
    frame = read(records(change(CLEAN, **{f"{error}_store": rate}), DRAWS, crowd, "store"))
    told = truth.loc[frame["customer_id"]]
    able = np.ones(len(told), bool) if can is None else can(told).to_numpy()
    wrong = (frame[column].astype(object).fillna("-").to_numpy() != told[column].astype(object).fillna("-").to_numpy())[
        able
    ]
    assert wrong.mean() == pytest.approx(rate, abs=4.5 * np.sqrt(rate * (1 - rate) / able.sum())), error
    others = [c for c in ("name", "email", "phone", "national_id", "birth_date") if c != column]
    if error not in ("no_accents", "upper_case", "lower_case", "broken_accents"):
        for c in others:
            assert (
                frame[c].astype(object).fillna("-").to_numpy().tolist() == told[c].astype(object).fillna("-").tolist()
            ), c


def test_a_slip_is_one_slip(crowd, truth):
    frame = read(records(change(CLEAN, typo_name_web=1.0), DRAWS, crowd, "web"))
    for written, true in zip(frame["name"][:3000], truth.loc[frame["customer_id"], "name"][:3000]):
        assert written != true and abs(len(written) - len(true)) <= 1
        head = next((i for i, (a, b) in enumerate(zip(written, true)) if a != b), min(len(written), len(true)))
        tail = next(
            (i for i, (a, b) in enumerate(zip(written[::-1], true[::-1])) if a != b), min(len(written), len(true))
        )
        assert max(len(written), len(true)) - head - tail <= 2, (written, true)


def test_old_records_tell_old_lives(crowd, truth):
    frame = read(records(change(CLEAN, age_store=3.0), DRAWS, crowd, "store"))
    at = frame["customer_id"].to_numpy() - 1
    years = (np.datetime64("2025-01-01") - frame["updated"].to_numpy()) / np.timedelta64(1, "D") / 365.25
    told = truth.loc[frame["customer_id"]]
    for column, since in (("email", crowd.new_mail), ("phone", crowd.new_phone), ("address", crowd.moved)):
        differs = frame[column].to_numpy() != told[column].to_numpy()
        assert not (differs & (since[at] >= years + 0.01)).any(), column
        assert differs[since[at] < years - 0.01].mean() > 0.9, column
    wed = crowd.wed[at] < years
    assert wed.sum() > 20 and (frame["name"].to_numpy() != told["name"].to_numpy())[wed].mean() > 0.95
    assert np.median(years) == pytest.approx(3 * np.log(2), rel=0.05)


def test_gaps_at_random_and_not_at_random(both, crowd):
    frame = read(both["store"])
    years = ((np.datetime64("2025-01-01") - frame["updated"].to_numpy()) / np.timedelta64(1, "D") / 365.25).astype(
        float
    )
    no_mail = frame["email"].isna().to_numpy()
    assert no_mail[years > 5].mean() > no_mail[years < 1].mean() + 0.15
    age = crowd.age[frame["customer_id"].to_numpy() - 1]
    band = (years > 1) & (years < 2)  # given the date, a missing e-mail says nothing of its owner's age
    assert abs(age[band & no_mail].mean() - age[band & ~no_mail].mean()) < 3 * age.std() / np.sqrt(
        (band & no_mail).sum()
    )
    no_birth = frame["birth_date"].isna().to_numpy()
    assert no_birth[age > 65].mean() > 1.8 * no_birth[age < 35].mean() > 0


def test_shared_mails_and_what_matching_finds(joined):
    identities, links = joined
    found = match_quality(identities, links, "national_id", "email", "name", ("name", "birth_date"), ("email", "name"))
    assert found.loc["name + birth_date", "precision"] > 0.98
    assert 0.4 < found.loc["email", "recall"] < 0.65 and found.loc["email", "precision"] < 0.7
    assert 0.6 < found.loc["name", "precision"] < 0.98 and found.loc["name", "recall"] < 0.2
    assert 0.04 < found.loc["national_id", "recall"] < 0.12
    digits = identities.assign(national_id=identities["national_id"].str.replace(r"\D", "", regex=True).str[-8:])
    digits = digits[~digits["national_id"].isin(["00000000", "11111111", "99999999", "12345678", "0"])]
    tidy = match_quality(digits, links, "national_id").iloc[0]
    assert tidy["precision"] > 0.97 and tidy["recall"] > 0.13


def test_match_quality_by_hand():
    frame = pd.DataFrame({"system": ["web", "web", "web", "store", "store"], "record_id": [1, 2, 3, 1, 2]})
    links = frame.assign(customer_id=[10, 11, 12, 10, 12])
    frame = frame.assign(email=["a", "a", "c", "a", None], phone=["1", "2", None, "9", "3"])
    got = match_quality(frame, links, "email", "phone").loc["email"]
    assert (got["found"], got["right"], got["precision"], got["recall"]) == (2, 1, 0.5, 0.5)
    assert match_quality(frame, links, "phone")["precision"].isna().all()
    assert agreement(frame, links).loc["email"].tolist() == [0.5, 0.0, 0.5]
    assert agreement(frame, links).loc["phone"].tolist() == [0.0, 0.5, 0.5]


def test_pairs_agree_in_part(joined):
    shares = agreement(*joined)
    assert np.allclose(shares.sum(axis=1), 1) and shares.loc["country", "same"] == 1
    assert shares.loc["name", "same"] < 0.3 and 0.4 < shares.loc["email", "same"] < 0.7
    assert (shares.loc[["email", "phone", "national_id", "address", "birth_date"], "missing"] > 0.1).all()


def test_consents(crowd, both):
    tables = {s: to_frame(consents(P, DRAWS, crowd, s)) for s in SYSTEMS}
    wanted = to_frame(wishes(P, DRAWS, crowd)).set_index(["customer_id", "purpose"])["granted"]
    assert len(wanted) == 3 * N and wanted.index.is_unique
    for s, frame in tables.items():
        assert set(frame["customer_id"]) == set(both[s].links["customer_id"].to_pylist())
        assert not frame.duplicated(["customer_id", "purpose", "timestamp"]).any()
        first = frame[~frame.duplicated(["customer_id", "purpose"])]
        assert len(first) == 3 * first["customer_id"].nunique()
        second = frame[frame.duplicated(["customer_id", "purpose"])]
        assert not second["granted"].any() and len(second) > 100
        by_purpose = first.groupby("purpose", observed=True)["granted"].mean()
        assert (by_purpose[list(PURPOSES)].diff().dropna() < 0).all()
    latest = {
        s: f.sort_values("timestamp").groupby(["customer_id", "purpose"], observed=True)["granted"].last()
        for s, f in tables.items()
    }
    share = {s: (latest[s] == wanted.reindex(latest[s].index)).mean() for s in SYSTEMS}
    assert share["web"] > 0.97 and 0.85 < share["store"] < 0.95
    pair = pd.DataFrame(latest).dropna().astype(bool)
    assert 0.04 < (pair["web"] != pair["store"]).mean() < 0.15
    heeded = change(P, **{f"{e}_{s}": 0.0 for e in ("deaf_to_withdrawal", "mistaken_consent") for s in SYSTEMS})
    exact = to_frame(consents(heeded, DRAWS, crowd, "store")).sort_values("timestamp")
    exact = exact.groupby(["customer_id", "purpose"], observed=True)["granted"].last()
    assert exact.equals(wanted.reindex(exact.index)), "without errors the last answer is the wish"


def test_consents_by_record(crowd, both):
    by = to_frame(consents(P, DRAWS, crowd, "store", by="record_id"))
    known = to_frame(both["store"].links).set_index("record_id")["customer_id"]
    columns = ["customer_id", "purpose", "timestamp", "granted"]
    joined = by.assign(customer_id=known[by["record_id"]].to_numpy())[columns].sort_values(columns, ignore_index=True)
    usual = to_frame(consents(P, DRAWS, crowd, "store"))
    assert joined.equals(usual[columns].sort_values(columns, ignore_index=True))
    assert usual["customer_id"].is_monotonic_increasing, "in the order of the records it would give the links away"
    with pytest.raises(KitError, match="customer_id or record_id"):
        consents(P, DRAWS, crowd, "store", by="name")


def test_unknown_system(crowd):
    with pytest.raises(KitError, match="did you mean 'store'"):
        records(P, DRAWS, crowd, "stores")


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_extreme_rates_and_few_people(rate):
    extreme = change(P, **{f"{e}_{s}": rate for e in ERRORS if e != "age" for s in SYSTEMS})
    for n in (0, 1, 5):
        few = people(extreme, DRAWS, IDS[:n])
        for s in SYSTEMS:
            found = records(extreme, DRAWS, few, s)
            assert found.identities.schema.equals(records(P, DRAWS, people(P, DRAWS, IDS[:40]), s).identities.schema)
            assert consents(extreme, DRAWS, few, s).num_rows >= 3 * len(set(found.links["customer_id"].to_pylist()))
        assert persons(few).num_rows == n


def test_accents_break_as_they_do(crowd):
    frame = read(records(change(CLEAN, broken_accents_web=1.0), DRAWS, crowd, "web"))
    names = " ".join(frame["name"][:2000])
    assert "Ã³" in names and not re.search("[áéíóúñ]", names) and "ÃÂ" not in names
    assert pa.types.is_string(records(P, DRAWS, crowd, "web").identities["name"].type)
