"""What local models are made of."""

import jax.numpy as jnp
import numpy as np

from khop.agents.dynamics import symexp, symlog


def test_symlog() -> None:
    np.testing.assert_allclose(symlog(jnp.array([0.0, np.e - 1, 1 - np.e])), [0, 1, -1], atol=1e-6)
    values = jnp.array([-1e5, -3.0, 0.0, 0.2, 1e4])
    np.testing.assert_allclose(symexp(symlog(values)), values, rtol=1e-5)
