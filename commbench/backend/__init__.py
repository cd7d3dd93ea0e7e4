"""The profile, and the recorder, under torch.distributed: for programs that hold nothing of ours.

`group` is a process group around torch's own one, `install` puts it in the place of those that a program asks for,
`observer` is what a recorder implements.
"""
