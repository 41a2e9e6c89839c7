"""Training goes on in the other library with the same losses, and back again.

A bidirectional LSTM of 2 layers with projection, and packed sequences, is trained for
some steps in torch, goes on here for 50 steps, and then in torch again. torch would
have computed the same losses without the change.
"""

import jax
import numpy as np
import optax
import pytest

import jaxlstm as jl

OPTIMISED = True  # compared with another library: compile as users do

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]

RATE, STEPS, ROWS = 0.01, 12, 6
rng = np.random.default_rng(91)
XS = rng.normal(size=(STEPS, ROWS, 3)).astype(np.float32)
TARGETS = np.tanh(np.cumsum(XS, 0)[..., :2])  # a function of the past
LENGTHS = np.array([12, 1, 7, 3, 12, 9], np.int32)
ACTIVE = (np.arange(STEPS)[:, None] < LENGTHS)[..., None].astype(np.float32)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(3, 8, 2, bidirectional=True, proj_size=4)
        self.fc = torch.nn.Linear(8, 2)

    def forward(self, xs, lengths):
        pack = torch.nn.utils.rnn
        packed = pack.pack_padded_sequence(xs, lengths, enforce_sorted=False)
        hs, _ = pack.pad_packed_sequence(self.rnn(packed)[0], total_length=len(xs))
        return self.fc(hs)


def train_in_torch(net, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    xs, lengths, targets, active = map(torch.as_tensor, (XS, LENGTHS, TARGETS, ACTIVE))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (((net(xs, lengths.long()) - targets) * active) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_here(model, params, steps: int):
    """Train with Adam.

    torch trains two biases, and each gets the gradient of their sum. The sum therefore
    moves twice as far as our b does with the same rate.
    """
    optimizer = optax.adam(RATE)

    def loss_of(params):
        _, ys = model.apply(params, XS, lengths=LENGTHS)
        return (((ys - TARGETS) * ACTIVE) ** 2).mean()

    def double_b(path, update):
        name = jax.tree_util.keystr(path)
        return (2 if "rnn" in name and name.endswith(".b") else 1) * update

    @jax.jit
    def step(params, state):
        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state)
        updates = jax.tree_util.tree_map_with_path(double_b, updates)
        return loss, optax.apply_updates(params, updates), state

    losses, state = [], optimizer.init(params)
    for _ in range(steps):
        loss, params, state = step(params, state)
        losses.append(float(loss))
    return losses, params


def test_training_goes_on_with_the_same_losses_and_back(relaxed):
    torch.manual_seed(0)
    net = Net()
    train_in_torch(net, 20)
    params, model = jl.interop.torch.load(net, prefix=("rnn", "fc"))
    ours, params = train_here(model, params, 50)
    theirs = train_in_torch(net, 50)
    assert theirs[-1] < 0.9 * theirs[0]  # it learns
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)

    again = Net()
    arrays = jl.interop.torch.dump(model, params)
    again.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})
    back, on = train_in_torch(again, 50), train_in_torch(net, 50)
    np.testing.assert_allclose(back, on, rtol=0, atol=1e-5)
