"""Systems by name: what is found, what is refused and with which hint."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from toys import Queues, Rooms

import khop
from khop.errors import InputError
from khop.system import System, name_of, register

OWN_FILE = '''
"""A system in a file of its own."""

import jax
import jax.numpy as jnp
import numpy as np

import khop
from khop.system import DiscreteActions, Spec, Step, System

STEP = 1.0


@khop.register("counter")
class Counter(System):
    agents: int = 2

    @property
    def spec(self):
        action = DiscreteActions(np.full(self.agents, 2), ("stay", "count"))
        sizes = np.ones(self.agents, int)
        return Spec(self.agents, sizes, ("count",), ("1",), action, 5, 1.0, {"return": "1"})

    @property
    def topology(self):
        return khop.Topology.line(self.agents)

    def reset(self, key):
        return jnp.zeros(self.agents), jnp.zeros((self.agents, 1))

    def step(self, key, state, action):
        state = state + STEP * action
        over = jnp.zeros(self.agents, bool)
        return Step(state, state[:, None], state, over, jnp.asarray(False), {})
'''


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    file = tmp_path / "own.py"
    file.write_text(OWN_FILE)
    return file


@pytest.fixture(autouse=True)
def registry_is_as_before() -> Iterator[None]:
    before = khop.registered()
    yield
    after = khop.registered()
    khop.system._REGISTRY.clear()
    khop.system._REGISTRY.update(before)
    assert after == before


def test_names_and_systems_lead_to_each_other() -> None:
    assert {"platoon-catchup", "platoon-slowdown"} <= khop.registered().keys()
    for name, cls in khop.registered().items():
        system = khop.make(name)
        assert type(system) is cls
        assert name_of(system) == name


def test_registered_names_are_sorted_and_the_table_is_a_copy() -> None:
    names = list(khop.registered())
    assert names == sorted(names)
    khop.registered().clear()
    assert list(khop.registered()) == names


def test_parameters_reach_the_system() -> None:
    assert khop.make("platoon-catchup", vehicles=3, horizon=7).spec.horizon == 7


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"^Unknown system 'platoon-cachup': did you mean 'platoon-catchup'\?$"):
        khop.make("platoon-cachup")


def test_a_name_like_no_other_is_refused_with_all_of_them() -> None:
    with pytest.raises(InputError, match=r"^Unknown system 'xyz': choose from .*platoon-catchup, platoon-slowdown"):
        khop.make("xyz")


def test_an_unknown_parameter_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match="parameter of platoon-catchup 'vehicle': did you mean 'vehicles'"):
        khop.make("platoon-catchup", vehicle=3)


def test_parameters_of_another_system_are_unknown() -> None:
    with pytest.raises(InputError, match="parameter of platoon-catchup 'cap_initial_speed': choose from"):
        khop.make("platoon-catchup", cap_initial_speed=True)


def test_a_taken_name_is_refused_and_keeps_its_owner() -> None:
    before = khop.registered()["platoon-catchup"]
    with pytest.raises(InputError, match="'platoon-catchup' is taken by CatchUp"):
        register("platoon-catchup")(Rooms)
    assert khop.registered()["platoon-catchup"] is before


def test_registering_a_class_again_is_no_error() -> None:
    """A notebook cell or a reloaded module does it."""
    cls = khop.registered()["platoon-catchup"]
    assert register("platoon-catchup")(cls) is cls


def test_a_system_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="Queues has no name"):
        name_of(Queues())


def test_the_fixture_registers_the_toys_for_one_test(registered_toys: list[str]) -> None:
    for name in registered_toys:
        assert name_of(khop.make(name)) == name


# Files


def test_a_system_in_a_file_is_found_by_file_and_name(own_file: Path) -> None:
    system = khop.make(f"{own_file}:counter", agents=3)
    assert isinstance(system, System)
    assert system.spec.n == 3
    state, _ = system.reset(jax.random.key(0))
    assert system.step(jax.random.key(0), state, jax.numpy.ones(3, int)).reward.tolist() == [1, 1, 1]
    assert name_of(system) == f"{own_file}:counter"
    assert type(khop.make(name_of(system))) is type(system)
    assert "counter" not in khop.registered()


def test_a_relative_path_is_found_and_named_in_full(own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_file.parent)
    assert name_of(khop.make("own.py:counter")) == f"{own_file}:counter"


def test_two_files_may_use_one_name(own_file: Path) -> None:
    other = own_file.with_name("other.py")
    other.write_text(OWN_FILE.replace("agents: int = 2", "agents: int = 4"))
    assert khop.make(f"{own_file}:counter").spec.n == 2
    assert khop.make(f"{other}:counter").spec.n == 4


def test_an_unknown_parameter_of_a_file_is_refused(own_file: Path) -> None:
    with pytest.raises(InputError, match="'agent': did you mean 'agents'"):
        khop.make(f"{own_file}:counter", agent=3)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no file .*nowhere\.py"):
        khop.make(f"{tmp_path / 'nowhere.py'}:counter")


def test_a_file_that_does_not_register_the_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.py"
    file.write_text("")
    with pytest.raises(InputError, match=r"Unknown system in .*empty\.py 'counter'"):
        khop.make(f"{file}:counter")


def test_a_file_cannot_pass_off_another_system_as_its_own(tmp_path: Path) -> None:
    file = tmp_path / "empty.py"
    file.write_text("")
    with pytest.raises(InputError, match="Unknown system in"):
        khop.make(f"{file}:platoon-catchup")


def test_a_file_may_hold_several_systems(own_file: Path) -> None:
    own_file.write_text(OWN_FILE + '\n\n@khop.register("other")\nclass Other(Counter):\n    agents: int = 5\n')
    assert khop.make(f"{own_file}:counter").spec.n == 2
    assert khop.make(f"{own_file}:other").spec.n == 5
