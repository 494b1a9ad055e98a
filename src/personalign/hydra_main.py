"""The door for Hydra's own command line: multirun, its launchers and its sweepers.

python -m personalign.hydra_main -m generation=plain,preference_prompt memory=[preference_statement] seed=0,1
"""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from personalign.composition.compose import compose
from personalign.composition.home import home
from personalign.runtime import threads


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="config")
def main(_: DictConfig) -> None:
    """Run the job's overrides as `personalign run` would: checked, resolved, in the same run directory."""
    from personalign.experiment import Experiment

    Experiment(compose(HydraConfig.get().overrides.task)).run()


if __name__ == "__main__":
    threads.configure()
    main()
