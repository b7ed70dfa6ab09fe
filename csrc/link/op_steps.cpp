#include "link/op_steps.h"

#include "acl/queue.h"

namespace datadist {

void OpSteps::queue(void* to, aclrtStream stream) const {
  if (must_be_taken != nullptr) acl::queue_wait_equal(must_be_taken, 0, stream);
  if (reached != nullptr) acl::queue_write(reached, 1, stream);
  bool has_waited = opened == nullptr || acl::queue_wait(opened, 1, stream) == 0;
  for (size_t i = 0; i < awaited.size(); ++i)
    has_waited &= acl::queue_wait(awaited[i].word, awaited[i].value, stream) == 0;
  acl::queue_copy(to, has_waited ? status : failed, sizeof(int32_t), stream);
  aclError code = 0;
  if (reached != nullptr) code = acl::queue_write(reached, 0, stream);
  if (opened != nullptr && has_waited) code |= acl::queue_write(opened, 0, stream);
  if (released != nullptr) code |= acl::queue_write(released, 1, stream);
  // Behind the copy of the status: who waits for the transfer comes after it.
  for (const Few<Gate>* gates : {&starts, &passed}) {
    for (size_t i = 0; i < gates->size(); ++i) {
      const Gate& gate = (*gates)[i];
      if (acl::queue_write(gate.word, 1, stream) != 0) gate.refused->store(true);
    }
  }
  if (mark != nullptr) code |= acl::queue_write(mark, mark_number, stream);
  if ((code != 0 || !has_waited) && refused != nullptr) refused->store(true);
}

}  // namespace datadist
