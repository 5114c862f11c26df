from collections import Counter

import pytest

from guidon.training.data.order import Order

ALL = slice(None)


def drawn(order, steps, size):
    return [order.batch(step, size, ALL) for step in range(steps)]


def test_every_sample_is_drawn_once_before_any_is_drawn_twice():
    order = Order(0, [10])
    numbers = [number for _, rows in drawn(order, 15, 4) for number, _ in rows]
    epochs = [numbers[k : k + 10] for k in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


@pytest.mark.parametrize("counts", [[3, 30, 7], [1, 100], [8, 8], [5]])
def test_all_samples_are_drawn_equally_often(counts):
    order, size = Order(1, counts), 4
    seen = Counter((bucket, number) for bucket, rows in drawn(order, sum(counts), size) for number, _ in rows)
    assert len(seen) == sum(counts)
    assert set(seen.values()) == {size}


def test_buckets_take_turns():
    order = Order(2, [30, 10])
    turns = [bucket for bucket, _ in drawn(order, 40, 4)]
    for k in range(37):
        assert 0 < turns[k : k + 8].count(1) <= 3 or k > 32


def test_a_bucket_of_less_than_a_batch_fills_it():
    _, rows = Order(3, [3]).batch(0, 8, ALL)
    assert Counter(Counter(number for number, _ in rows).values()) == Counter({3: 2, 2: 1})


def test_a_batch_depends_on_seed_and_step_alone():
    order = Order(4, [6, 9])
    later = order.batch(77, 5, ALL)
    assert Order(4, [6, 9]).batch(77, 5, ALL) == later
    assert any(Order(5, [6, 9]).batch(step, 5, ALL) != order.batch(step, 5, ALL) for step in range(5))
    for rows in (slice(0, 2), slice(2, 5), slice(4, 5)):
        assert order.batch(77, 5, rows) == (later[0], later[1][rows])
