"""Parts of detectors in fixed shapes: boxes, anchors, matching, suppression, RoIAlign, the feature pyramid, RetinaNet."""
