"""Photos with predictions: where labels are, what is drawn, and what is counted below."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from big_vision_lite.data.keypoints import KeypointSet
from big_vision_lite.heads.detection.drawing import annotate_boxes
from big_vision_lite.heads.keypoints.drawing import annotate_poses
from big_vision_lite.heads.photo import AnnotatedPhoto, place_labels, tinted
from big_vision_lite.heads.segmentation.drawing import indexed, palette
from big_vision_lite.system.palette import BLUE, rgb

number = st.integers(0, 300)


def overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@settings(max_examples=60, deadline=None)
@given(boxes=st.lists(st.tuples(number, number, number, number), max_size=25),
       size=st.tuples(st.integers(1, 120), st.integers(1, 40)), canvas=st.tuples(st.integers(20, 320), number))
def test_labels_do_not_overlap_and_stay_inside(boxes, size, canvas):
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes]
    places = place_labels(boxes, [size] * len(boxes), canvas)
    shown = [place for place in places if place is not None]
    for left, top, right, bottom in shown:
        assert left >= 0 and top >= 0 and right <= canvas[0] and bottom <= canvas[1]
        assert (right - left, bottom - top) == size
    assert not any(overlap(a, b) for a, b in itertools.combinations(shown, 2))
    if size[0] <= canvas[0] and size[1] <= canvas[1]:
        assert not boxes or places[0] is not None


def test_a_label_is_at_its_box_where_there_is_room():
    box, size = (50, 60, 90, 80), (20, 10)
    assert place_labels([box], [size], (200, 200)) == [(50, 50, 70, 60)]  # above the upper left corner
    second = place_labels([box, box], [size, size], (200, 200))[1]
    assert second == (70, 50, 90, 60)  # above the upper right one
    corner = place_labels([(0, 0, 200, 200)], [size], (200, 200))
    assert corner == [(0, 0, 20, 10)]


def test_boxes_are_drawn_at_their_pixels():
    photo = np.full((500, 600, 3), 100, np.uint8)
    detections = [{"box": [100.0, 200.0, 300.0, 400.0], "score": 0.9, "label": "cell"},
                  {"box": [10.0, 10.0, 30.0, 30.0], "score": 0.2, "label": "cell"}]
    picture = annotate_boxes(photo, detections, ("cell",), 0.3)
    assert picture.shape[1] == 600 and picture.shape[0] > 500
    blue = (picture[:500] == rgb(BLUE)).all(-1)
    assert blue[300, 100] and blue[399, 200] and blue[300, 299] and not blue[300, 102:298].any()
    assert not blue[:100].any() and (picture[:150] == 100).all()  # the other one is below the score


def test_what_has_no_room_is_counted():
    photo = np.zeros((480, 480, 3), np.uint8)
    crowd = [{"box": [0.0, 0.0, 480.0, 480.0], "score": 0.5, "label": "a rather long name"} for _ in range(200)]
    places = place_labels([tuple(one["box"]) for one in crowd], [(160, 19)] * 200, (480, 480))
    assert 30 < sum(place is not None for place in places) <= 75 and None in places
    few = annotate_boxes(photo, crowd[:2], ("a rather long name",), 0.3)
    many = annotate_boxes(photo, crowd, ("a rather long name",), 0.3)
    assert many.shape == few.shape  # one line
    assert (many[480:] != few[480:]).any()


def test_small_photos_are_enlarged_and_large_ones_are_not():
    assert AnnotatedPhoto(np.zeros((32, 20, 3), np.uint8)).finish().shape == (480, 300, 3)
    assert AnnotatedPhoto(np.zeros((500, 20, 3), np.uint8)).finish().shape == (500, 20, 3)
    squares = AnnotatedPhoto(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).finish()
    assert (squares[:120, :120] == [0, 1, 2]).all()


def test_masks_tint_classes_alone():
    photo, mask = np.full((50, 60, 3), 200, np.uint8), np.zeros((50, 60), np.uint8)
    mask[:20] = 3
    picture = tinted(photo, mask, palette(), opacity=0.5)
    assert (picture[20:] == 200).all()
    np.testing.assert_allclose(picture[:20], np.broadcast_to((palette()[3] + 200.0) / 2, (20, 60, 3)), atol=1)


def test_masks_keep_their_values_in_a_file_with_colours(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = indexed(mask)
    np.testing.assert_array_equal(np.asarray(image), mask)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette()[mask])


def test_poses_are_drawn_into_the_whole_photo():
    keypoints = KeypointSet(("head", "foot", "hand"), (0.1,) * 3, ((0, 1), (1, 2)))
    pose = {"score": 0.6,
            "keypoints": {"head": [100.0, 50.0, 0.9], "foot": [100.0, 450.0, 0.8], "hand": [400.0, 450.0, 0.1]}}
    photo = np.zeros((500, 600, 3), np.uint8)
    picture = annotate_poses(photo, [pose], keypoints, 0.3)
    assert picture.shape[1] == 600 and picture[250, 100].any() and picture[50, 100].any()
    assert not picture[440:460, 200:600].any()  # neither the hidden hand nor the limb to it
