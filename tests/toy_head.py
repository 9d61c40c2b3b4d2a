"""A head with main metrics that the package does not have."""

import dataclasses

from big_vision_lite.data.source import Dataset, DatasetInfo
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.head import MainMetric, Metrics


class ToyMetrics(Metrics):
    def __init__(self, metrics: Metrics):
        self.metrics = metrics

    def add(self, outputs, batch) -> None:
        self.metrics.add(outputs, batch)

    def result(self) -> dict[str, float]:
        result = self.metrics.result()
        return result | {"r2": 1 - result["loss"], "rmse": result["loss"]**0.5}


@dataclasses.dataclass(frozen=True)
class ToyHead(Classification):
    main: MainMetric = MainMetric("r2")

    def metrics(self, dataset: Dataset) -> Metrics:
        return ToyMetrics(super().metrics(dataset))

    def main_metric(self, data: DatasetInfo) -> MainMetric:
        return self.main
