"""Stored pixel values of one DICOM frame, every transfer syntax decoded or refused by its name.

pydicom's plugins (pylibjpeg, pyjpegls, gdcm, pillow) decode all but JPEG Extended with 12 bits (.51) and
the retired JPEG processes .53 and .55, which gdcm's own reader does. The lossless syntaxes decode to
equal values in all of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from medform.ingestion.dicom_file import open_pixels, quiet_pydicom
from medform.ingestion.found_series import Finding, Refused

__all__ = ["DicomPixels", "decode"]

_GDCM_FIRST = {
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.52",
    "1.2.840.10008.1.2.4.53",
    "1.2.840.10008.1.2.4.54",
    "1.2.840.10008.1.2.4.55",
    "1.2.840.10008.1.2.4.56",
}


class DicomPixels:
    """Reads frames under one root; keeps the file read last, since the frames of a file are asked for in turn."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._name = ""
        self._dataset: FileDataset | None = None

    def frame(self, name: str, frame: int) -> np.ndarray:
        """Stored values (rows, columns) of a frame in native byte order; raises `Refused` naming the file."""
        if self._dataset is None or name != self._name:
            self._dataset, self._name = open_pixels(self._root / name, name), name
        return decode(self._dataset, self._root / name, name, frame)


def decode(dataset: FileDataset, path: Path, name: str, frame: int = 0) -> np.ndarray:
    """Decode one frame of a parsed file to (rows, columns) integers; `Refused` with the syntax's name if none can."""
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    frames = int(dataset.get("NumberOfFrames") or 1)
    array = _with_gdcm(path, dataset, frame, frames) if syntax in _GDCM_FIRST else None
    if array is None:
        try:
            with quiet_pydicom():
                array = pixel_array(dataset, index=frame if frames > 1 else None, raw=True)
        except Exception as error:  # whatever a foreign file makes a decoder do becomes a finding
            reason = f"no decoder reads its pixels ({syntax.name}; {type(error).__name__})."
            raise Refused(Finding("undecodable", "quarantine", reason, name, "TransferSyntaxUID")) from None
    if array.shape != (int(dataset.Rows), int(dataset.Columns)):
        reason = f"decodes to {array.shape} where the header says {dataset.Rows} x {dataset.Columns}."
        raise Refused(Finding("undecodable", "quarantine", reason, name, "PixelData"))
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _with_gdcm(path: Path, dataset: FileDataset, frame: int, frames: int) -> np.ndarray | None:
    """The frame by gdcm's own reader, or None; its C-level messages are switched off, for they go to stderr."""
    import gdcm

    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        return None
    image = reader.GetImage()
    wide = image.GetPixelFormat().GetBitsAllocated() > 8
    signed = bool(image.GetPixelFormat().GetPixelRepresentation())
    kind = np.dtype(f"{'i' if signed else 'u'}{2 if wide else 1}")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    buffer = image.GetBuffer().encode("utf-8", errors="surrogateescape")
    if len(buffer) != frames * rows * columns * kind.itemsize:
        return None
    return np.frombuffer(buffer, kind).reshape(frames, rows, columns)[frame]
