"""Phase shard: its primary is lost, and the source document's tests make the nodes differ."""

from __future__ import annotations

from tests.fixtures.labs import LabUnderTest, eventually
from tests.fixtures.traffic import acknowledged, lost, traffic


def test_replicas_come_back_after_a_failover(at_shard: LabUnderTest) -> None:
    """The replicas' slots are on the primary that is lost."""
    lab = at_shard
    with traffic(lab, 120, users=20):
        lab.kill_server("eu", "eu_db")
        lab.play_ok("failover")
        lab.play_ok("rejoin")
        play = lab.play_ok("shard")
        assert "us has copies of" in " ".join(play.output.split())
        already = acknowledged(lab)
        eventually(lambda: acknowledged(lab) > already + 50)
    assert lost(lab) == 0
    assert "AGREES" in lab.workload("verify").stdout


def test_source_tests(at_shard: LabUnderTest) -> None:
    # What they write makes the nodes differ, which is what they show.
    done = at_shard.workload("source_tests")
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    for region in ("eu", "us", "jp"):
        assert f"rows in {region}.customer, all of them at home" in said
    for region in ("us", "jp"):
        assert f"{region}.test diverges: all of its rows are on {region} alone" in said
    assert "eu.test diverges" not in said
    verified = at_shard.workload("verify")
    assert verified.returncode == 1
    assert "us.test differs: " in verified.stdout
