"""The methods that classify, tag and ctc share."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import join_names
from jaxlstm.lab.config.tables import SequenceFiles
from jaxlstm.lab.data.labelled import LabelledSequences, Labels
from jaxlstm.lab.data.sequences import read_sequences
from jaxlstm.lab.data.tables import is_frame
from jaxlstm.lab.tasks.base import Artifact
from jaxlstm.lab.tasks.classification import data, model, results
from jaxlstm.lab.tasks.classification.data import Batch, SequenceDataset, Spec
from jaxlstm.layers.base import Layer

Table = Mapping[str, Any]


class SequenceTask:
    """The methods that the three tasks share; see `jaxlstm.lab.tasks.base.Task`."""

    name: str
    labels: Labels
    scores: Sequence[str] = ()

    def data(self, config: Any) -> SequenceDataset:
        """Read the sequences, and split them."""
        return SequenceDataset(config, self.labels)

    def check(self, config: Any, spec: Spec) -> None:
        """Check that the tables of the report can be made."""
        if self.labels != "transcript":
            results.require_scikit_learn()

    def outputs(self, spec: Spec) -> int:
        """Return the number of outputs of the model."""
        return len(spec.classes)

    def model(self, config: Any, spec: Spec) -> Layer:
        """Return the model; see `model.build`."""
        inputs, outputs = len(spec.columns), self.outputs(spec)
        return model.build(config.model, inputs=inputs, outputs=outputs)

    def batch_like(self, config: Any, spec: Spec) -> Batch:
        """Return the types of a training batch of the longest sequences."""
        return data.batch_like(spec, config.training.batch_size)

    def step_cost(self, config: Any) -> None:
        """Return None: the cost of a step depends on the lengths in the data."""

    def metrics(self, spec: Spec, means: Mapping[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return dict(means)

    def facts(self, config: Any, dataset: SequenceDataset) -> dict[str, str]:
        """Return numbers of sequences, classes and lengths, and the padding."""
        return data.facts(dataset)

    def conclude(self, trained: Any, dataset: SequenceDataset) -> list[Artifact]:
        """Return the results of the test part, or of validation without one."""
        name, part = dataset.scored()
        return [self.result(trained, part, name)]

    def artifacts(self, trained: Any, dataset: SequenceDataset) -> list[Artifact]:
        """Return the results with their pictures."""
        return self.conclude(trained, dataset)

    def result(self, trained: Any, part: LabelledSequences, name: str) -> Artifact:
        """Return the results of a part."""
        raise NotImplementedError

    def predict(self, trained: Any, data: Any = None) -> Table:
        """Return a table of predictions.

        Args:
            trained: the trained model.
            data: a path or a frame in the form of the training file, with or without
                labels; None for the test part, or validation without one.
        """
        return self.table(trained, _to_predict(self, trained, data))

    def table(self, trained: Any, part: LabelledSequences) -> Table:
        """Return a table of predictions for a part."""
        raise NotImplementedError

    def spec_to_json(self, spec: Spec) -> Any:
        """Return the spec as JSON."""
        return spec._asdict()

    def spec_from_json(self, written: Any) -> Spec:
        """Return the spec that `spec_to_json` wrote.

        Raises:
            BadInput: it is not the JSON of a spec.
        """
        try:
            lists = ("columns", "classes", "mean", "scale")
            return Spec(**{**written, **{key: tuple(written[key]) for key in lists}})
        except (TypeError, KeyError):
            raise BadInput(
                f"spec: got {written!r:.60}, expected the fields "
                f"{', '.join(Spec._fields)}"
            ) from None


def _to_predict(task: SequenceTask, trained: Any, data: Any) -> LabelledSequences:
    """Return the sequences to predict, in the scale of the spec."""
    if data is None:
        return trained.dataset().scored()[1]
    section, spec = trained.config.data, trained.spec
    if section.source != "files":
        section = SequenceFiles(path="new")
    path = data if is_frame(data) else str(data)
    section = section.model_copy(update={"path": path, "test_path": None})
    if section.missing != "flag":  # which adds columns
        section = section.model_copy(update={"features": spec.columns})
    part = read_sequences(section, task.labels, classes=spec.classes).train
    if part.columns != spec.columns:
        raise BadInput(
            f"data: got the features {join_names(part.columns, last='and')}, "
            f"expected {join_names(spec.columns, last='and')} as in the training data"
        )
    return spec.normalized(part)
