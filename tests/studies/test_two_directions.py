"""The picture of a steep and a flat direction: what it shows, and that it is drawn."""

from . import programs

program = programs.load("two_directions")


def test_the_steep_direction_is_pulled_and_the_flat_one_is_left_alone(tmp_path):
    alone = program.distances(program.METHODS["no compensation"], 1)
    plain, diagonal, rotated = (
        program.distances(tx, program.NUM_WORKERS) for tx in program.METHODS.values()
    )
    assert not plain[-1, 0] < 1e3  # diverged
    for found in (diagonal, rotated):
        assert found[-50:, 0].mean() < 3 * alone[-50:, 0].mean()
    # In the flat direction the diagonal pulls as much, and so learns from one worker in 16.
    assert rotated[300, 1] < 1.5 * alone[300, 1]
    assert diagonal[300, 1] > 5 * alone[300, 1]
    assert program.main(["--out", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
