// SenderSlots: a slot is issued again when it is drained and retired, whichever comes first.
#include <deque>

#include "check.h"
#include "error.h"
#include "link/slots.h"

namespace datadist {
namespace {

TEST(slots_are_busy_until_one_is_drained_and_retired) {
  SenderSlots slots(2);
  const SlotUse a = slots.take("asked", "cluster 2");
  const SlotUse b = slots.take("asked", "cluster 2");
  CHECK(a.slot != b.slot);
  CHECK_THROWS(Error, "all 2 transfers that may be in flight to cluster 2", slots.take("asked", "cluster 2"));

  slots.drained(a);
  CHECK_THROWS(Error, "all 2", slots.take("asked", "cluster 2"));
  slots.retired(a);

  const SlotUse again = slots.take("asked", "cluster 2");
  CHECK_EQUAL(again.slot, a.slot);
  CHECK_EQUAL(again.epoch, a.epoch + 1);
}

TEST(slots_ignore_what_is_said_of_an_earlier_use_or_twice) {
  SenderSlots slots(1);
  const SlotUse old = slots.take("asked", "peer");
  slots.retired(old);
  slots.retired(old);
  CHECK_THROWS(Error, "all 1", slots.take("asked", "peer"));
  slots.drained(old);
  slots.drained(old);
  const SlotUse now = slots.take("asked", "peer");

  slots.drained(old);
  slots.retired(old);

  CHECK_THROWS(Error, "all 1", slots.take("asked", "peer"));
  slots.retired(now);
  slots.drained(now);
  CHECK_EQUAL(slots.take("asked", "peer").epoch, now.epoch + 1);
}

TEST(slots_that_a_peer_makes_up_change_nothing) {
  SenderSlots slots(1);

  slots.retired({200, 1});

  CHECK_EQUAL(slots.take("asked", "peer").slot, 0u);
}

}  // namespace
}  // namespace datadist
