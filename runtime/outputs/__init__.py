"""What a run leaves behind besides video: pictures, depth, splats, tracks; and reading them back.

    targets.py      what `--save PATH` means            savers.py    writes it while frames go by
    cloud.py        Gaussians of one moment, as viewers of 3DGS expect them
    ply.py, splat.py, depth_image.py                    one moment each
    tracks.py, container.py                             a whole recording: how every Gaussian moves and fades
    recording.py    anything that was saved, at any time of it; convert.py writes it in another format
    camera_path.py  where novel views are taken from

Everything is written as the stream goes, in memory that does not depend on its length, and appears complete
or not at all; of numbered files, each for itself. See docs/outputs.md for what the formats hold.
"""
