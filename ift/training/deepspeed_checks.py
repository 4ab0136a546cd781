"""What cannot be trained under DeepSpeed, refused with the reason before weights load."""


def check_accelerator(accelerator):
    pass
