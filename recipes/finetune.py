"""Full fine-tuning: every weight of the source trains, with a new head for the task's classes.

    clipvp finetune --source.name offline:lite0 --data.name mnist5k --data.max_train 1000

The same as `clipvp train --method finetune`: Adam 1e-4, weight decay 5e-4, cosine per epoch, as the paper has them.
Images, in training and in testing, are only resized and cropped as the model's own preprocessing does.
"""

from train import train


def main() -> None:
    train(__doc__, "finetune")


if __name__ == "__main__":
    main()
