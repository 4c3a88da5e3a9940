"""What is left out: counted by reason, with the first names, and added up."""

from prunefuse_ray.data.left_out import LeftOut, gathered, joined, told


def test_reasons_are_counted_and_their_first_names_kept():
    one = gathered(LeftOut(f"{i}.txt", "extension .txt") for i in range(5))
    two = gathered([LeftOut("a", "no extension"), LeftOut("x.txt", "extension .txt")])
    both = joined([one, two])
    assert both.counts == {"extension .txt": 6, "no extension": 1}
    assert list(both.counts) == ["extension .txt", "no extension"], "the most frequent first"
    assert both.total == 7 == sum(part.num_rows for part in both.parts)
    assert told(both) == "6 extension .txt (0.txt, 1.txt, 2.txt, ...); 1 no extension (a)"
    assert gathered([]).total == 0
    assert gathered([]).parts == []


def test_of_many_reasons_the_most_frequent_are_told():
    """Names of scans end in numbers, each an extension of its own."""
    found = gathered(LeftOut(f"scan.{n}", f"extension .{n}") for n in range(1_000))
    assert told(found).endswith("; 988 for 988 other reasons")
    assert len(told(found)) < 1_000
