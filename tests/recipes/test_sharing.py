from clipx.recipes.sharing import kept, shared, sharing


class Thing:
    pass


def test_nothing_is_kept_outside():
    assert not sharing()
    assert kept("model", "a", (), Thing) is not kept("model", "a", (), Thing)


def test_the_same_comes_back_for_the_same_until_the_end():
    with shared():
        assert sharing()
        model = kept("model", "a", (), Thing)
        assert kept("model", "a", (), Thing) is model
        features = kept("features", "test", (model,), Thing)
        assert kept("features", "test", (model,), Thing) is features
        assert kept("features", "train", (model,), Thing) is not features
        assert kept("source", "a", (), Thing) is not model
    with shared():
        assert kept("model", "a", (), Thing) is not model


def test_another_model_takes_the_place_of_the_first_and_of_what_came_from_it():
    with shared() as things:
        first = kept("model", "a", (), Thing)
        features = kept("features", "test", (first,), Thing)
        second = kept("model", "b", (), Thing)
        assert things.models() == [second]
        assert kept("features", "test", (first,), Thing) is not features
        assert kept("model", "a", (), Thing) is not first


def test_what_comes_from_something_that_is_not_kept_is_not_kept():
    with shared():
        tower = Thing()
        assert kept("features", "test", (tower,), Thing) is not kept("features", "test", (tower,), Thing)


def test_a_thing_that_changed_is_let_go_with_what_came_from_it():
    with shared() as things:
        source = kept("source", "a", (), Thing)
        chosen = kept("selection", "a", (source,), Thing)
        model = kept("model", "a", (), Thing)
        features = kept("features", "a", (model, chosen), Thing)
        things.forget(model)
        assert things.models() == []
        assert kept("selection", "a", (source,), Thing) is chosen
        assert kept("features", "a", (kept("model", "a", (), Thing), chosen), Thing) is not features


def test_the_oldest_of_many_is_let_go():
    with shared():
        first = kept("source", 0, (), Thing)
        others = [kept("source", number, (), Thing) for number in range(1, 12)]
        assert kept("source", 0, (), Thing) is first
        kept("source", 12, (), Thing)
        assert kept("source", 0, (), Thing) is first
        assert kept("source", 1, (), Thing) is not others[0]
