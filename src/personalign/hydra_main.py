"""The door for Hydra's own command line: multirun, its launchers and its sweepers.

python -m personalign.hydra_main -m generation=preference_prompt memory=[statement] seed=0,1
"""

from __future__ import annotations

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from personalign.commands.run import compute
from personalign.composition.compose import compose
from personalign.composition.home import home
from personalign.runtime import threads


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="config")
def main(_: DictConfig) -> None:
    """Run the job's overrides as `personalign run` would: checked, resolved, in the same run directory."""
    overrides = list(HydraConfig.get().overrides.task)
    GlobalHydra.instance().clear()  # compose starts a Hydra of its own
    compute(compose(overrides))


if __name__ == "__main__":
    threads.configure()
    main()
