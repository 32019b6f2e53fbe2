"""LoRA: adapters beside the source's weights train, with a head for the task's classes.

    clipvp lora --source.name offline:lite0 --data.name mnist5k --data.shots 16

The same as `clipvp train --method lora`. `--method clip_lora` has the settings of CLIP-LoRA for a CLIP. Needs the extra
`lora`; only the adapters are saved.
"""

from train import train


def main() -> None:
    train(__doc__, "lora")


if __name__ == "__main__":
    main()
