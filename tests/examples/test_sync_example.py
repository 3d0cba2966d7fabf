"""The example that trains on 1 to 8 devices: what it says is so."""

import json

import jax
import numpy as np

from examples import sync_batch_norm


def test_one_and_eight_devices_train_the_same_weights_and_the_example_shows_it(tmp_path, capsys, monkeypatch):
    train, results = sync_batch_norm.train, {}

    def recorded(*run, **options):
        results[run] = train(*run, **options)
        return results[run]

    one, eight = ("synchronized", "jit", 1), ("synchronized", "shard_map", 8)
    monkeypatch.setattr(sync_batch_norm, "train", recorded)
    monkeypatch.setattr(sync_batch_norm, "runs", lambda counts: [one, eight])
    sync_batch_norm.main(["--steps=20", "--output", str(tmp_path)])

    for a, b in zip(*(jax.tree.leaves(results[run][:2]) for run in (one, eight)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())
    curves = json.loads((tmp_path / "curves.json").read_text())
    np.testing.assert_allclose(*curves.values(), rtol=0, atol=1e-5)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "largest distance" in " ".join(capsys.readouterr().out.split())
