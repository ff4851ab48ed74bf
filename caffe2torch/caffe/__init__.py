"""West wing: everything Caffe means. torch is never imported here."""
