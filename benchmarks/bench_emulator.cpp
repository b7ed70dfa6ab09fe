// What the emulated runtime costs per task, and how fast its copies are.
//
//   make bench-emulator [ARGS="5"]        rounds per row; 15 by default
//
// submit: host time per call while the stream is held by a gate, so that nothing runs beside it. run: from
// the opening of the gate until the stream is empty, per task. both: a host thread that submits as fast as it
// can while the workers run, from the first call until all streams are empty, per task; cpu: processor time
// of that, all threads together. Median of the rounds, and the range from the second best to the second
// worst.
//
// Last, what idle copy engines gain: the same copies of one stream in processes with and without them, in
// turn, in wall time.

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "acl/acl_base_rt.h"
#include "acl/acl_rt.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBatch = 1600;  // fits the queue of 2048 also where a task is a pair
constexpr int kStreamed = 20'000;
constexpr const char* kOfChild = "--copies-of-this-process";

void check(aclError code, const char* what) {
  if (code == ACL_SUCCESS) return;
  const char* why = aclGetRecentErrMsg();
  std::fprintf(stderr, "%s: %d %s\n", what, code, why == nullptr ? "" : why);
  std::exit(1);
}
#define CHECK(call) check((call), #call)

double now_ns() { return std::chrono::duration<double, std::nano>(Clock::now().time_since_epoch()).count(); }

double cpu_ns() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
}

struct Samples {
  std::vector<double> values;

  void add(double value) { values.push_back(value); }
  double median() { return at(values.size() / 2); }
  std::string text() {
    char out[64];
    const size_t edge = values.size() > 3 ? 1 : 0;
    const double low = at(edge);
    const double high = at(values.size() - 1 - edge);
    std::snprintf(out, sizeof out, "%6.0f (%.0f-%.0f)", median(), low, high);
    return out;
  }

 private:
  double at(size_t index) {
    std::sort(values.begin(), values.end());
    return values[index];
  }
};

char* device_memory(size_t bytes) {
  void* at = nullptr;
  CHECK(aclrtMalloc(&at, bytes, ACL_MEM_MALLOC_HUGE_FIRST));
  CHECK(aclrtMemset(at, bytes, 0, bytes));
  return static_cast<char*>(at);
}

// One stream with what its tasks need.
struct Lane {
  aclrtStream stream = nullptr;
  aclrtEvent event = nullptr;
  char* memory = device_memory(4096);

  Lane() {
    CHECK(aclrtCreateStream(&stream));
    CHECK(aclrtCreateEventExWithFlag(&event, ACL_EVENT_SYNC));
  }
  void hold() { CHECK(aclrtValueWait(memory + 4032, 1, ACL_STREAM_WAIT_VALUE_EQ, stream)); }
  void open() { set(1); }
  void close() { set(0); }

 private:
  void set(uint64_t value) { CHECK(aclrtMemcpy(memory + 4032, 8, &value, 8, ACL_MEMCPY_HOST_TO_DEVICE)); }
};

struct Kind {
  const char* name;
  int tasks;  // per call of submit
  std::function<void(Lane&)> submit;
};

void nothing(void*) {}

const std::vector<Kind> kKinds = {
    {"copy 64 B", 1,
     [](Lane& lane) {
       CHECK(aclrtMemcpyAsync(lane.memory, 64, lane.memory + 128, 64, ACL_MEMCPY_DEVICE_TO_DEVICE,
                              lane.stream));
     }},
    {"value write", 1, [](Lane& lane) { CHECK(aclrtValueWrite(lane.memory + 256, 7, 0, lane.stream)); }},
    {"value wait, met", 1,
     [](Lane& lane) { CHECK(aclrtValueWait(lane.memory + 320, 0, ACL_STREAM_WAIT_VALUE_EQ, lane.stream)); }},
    {"event record+wait", 2,
     [](Lane& lane) {
       CHECK(aclrtRecordEvent(lane.event, lane.stream));
       CHECK(aclrtStreamWaitEvent(lane.stream, lane.event));
     }},
    {"host function", 1, [](Lane& lane) { CHECK(aclrtLaunchHostFunc(lane.stream, &nothing, nullptr)); }},
    {"host function+write", 2,  // each function is handed over to the host's thread by itself
     [](Lane& lane) {
       CHECK(aclrtLaunchHostFunc(lane.stream, &nothing, nullptr));
       CHECK(aclrtValueWrite(lane.memory + 256, 7, 0, lane.stream));
     }},
};

void bench_tasks(const Kind& kind, std::vector<Lane>& lanes, int rounds) {
  Samples submit, run, both, cpu;
  const int calls = kBatch / kind.tasks;
  for (int round = 0; round < rounds; ++round) {
    for (Lane& lane : lanes) lane.close();
    for (Lane& lane : lanes) lane.hold();
    double start = now_ns();
    for (int i = 0; i < calls; ++i) {
      for (Lane& lane : lanes) kind.submit(lane);
    }
    const double tasks = static_cast<double>(calls) * kind.tasks * static_cast<double>(lanes.size());
    submit.add((now_ns() - start) / tasks);
    start = now_ns();
    for (Lane& lane : lanes) lane.open();
    for (Lane& lane : lanes) CHECK(aclrtSynchronizeStream(lane.stream));
    run.add((now_ns() - start) / tasks);

    const int streamed = kStreamed / kind.tasks / static_cast<int>(lanes.size());
    const double cpu_start = cpu_ns();
    start = now_ns();
    for (int i = 0; i < streamed; ++i) {
      for (Lane& lane : lanes) kind.submit(lane);
    }
    for (Lane& lane : lanes) CHECK(aclrtSynchronizeStream(lane.stream));
    const double count = static_cast<double>(streamed) * kind.tasks * static_cast<double>(lanes.size());
    both.add((now_ns() - start) / count);
    cpu.add((cpu_ns() - cpu_start) / count);
  }
  std::printf("%-20s %zu  %-22s %-22s %-22s %-22s\n", kind.name, lanes.size(), submit.text().c_str(),
              run.text().c_str(), both.text().c_str(), cpu.text().c_str());
  std::fflush(stdout);
}

// Copies beside memcpy between ordinary pages, turn by turn: block after block through `slab` bytes, as the
// blocks of a cache are moved. A slab of one block stays in the processor's caches, which memcpy uses and a
// copy engine goes past. In processor time: that of a copy that waits for its thread to get a processor says
// nothing about copies.
void bench_copies(size_t bytes, size_t slab, int rounds) {
  Lane lane;
  char* to = device_memory(slab);
  char* from = device_memory(slab);
  std::vector<char> plain_to(slab), plain_from(slab, 1);
  const int repeats = static_cast<int>(std::max<size_t>(1, (size_t{64} << 20) / bytes));
  Samples emulated, plain;
  for (int round = 0; round < rounds; ++round) {
    double start = cpu_ns();
    for (int i = 0; i < repeats; ++i) {
      const size_t at = static_cast<size_t>(i) * bytes % slab;
      std::memcpy(plain_to.data() + at, plain_from.data() + at, bytes);
      asm volatile("" ::"r"(plain_to.data()) : "memory");
    }
    plain.add(static_cast<double>(bytes) * repeats / (cpu_ns() - start) * 1000);
    start = cpu_ns();
    for (int i = 0; i < repeats; ++i) {
      const size_t at = static_cast<size_t>(i) * bytes % slab;
      CHECK(aclrtMemcpyAsync(to + at, bytes, from + at, bytes, ACL_MEMCPY_DEVICE_TO_DEVICE, lane.stream));
    }
    CHECK(aclrtSynchronizeStream(lane.stream));
    emulated.add(static_cast<double>(bytes) * repeats / (cpu_ns() - start) * 1000);
  }
  CHECK(aclrtFree(to));
  CHECK(aclrtFree(from));
  std::printf("%8zu KiB  %6zu KiB  %-26s %-26s %5.2f\n", bytes >> 10, slab >> 10, emulated.text().c_str(),
              plain.text().c_str(), emulated.median() / plain.median());
  std::fflush(stdout);
}

struct Sharing {
  const char* name;
  size_t width;
  size_t rows;
  int copies;  // they stand in a row behind a gate
};

constexpr Sharing kSharings[] = {{"1024 x 16 KiB", 16 << 10, 1, 1024},
                                 {"1024 x 64 KiB", 64 << 10, 1, 1024},
                                 {"512 x 8 rows of 16 KiB", 16 << 10, 8, 512},
                                 {"512 x 256 KiB", 256 << 10, 1, 512},
                                 {"32 x 4 MiB", 4 << 20, 1, 32}};

// Prints MB/s of each, scattered over memory that was touched before: the best of some rounds.
void copies_of_this_process() {
  constexpr size_t kMemory = size_t{256} << 20;
  constexpr size_t kPitch = size_t{4} << 20;
  Lane lane;
  char* const to = device_memory(kMemory);
  char* const from = device_memory(kMemory);
  for (const Sharing& sharing : kSharings) {
    const size_t places = (kMemory - (sharing.rows - 1) * kPitch) / sharing.width;
    double best = 0;
    for (int round = 0; round < 5; ++round) {
      lane.close();
      lane.hold();
      for (size_t i = 0; i < static_cast<size_t>(sharing.copies); ++i) {
        CHECK(aclrtMemcpy2dAsync(to + i * 7919 % places * sharing.width, kPitch,
                                 from + i * 4099 % places * sharing.width, kPitch, sharing.width,
                                 sharing.rows, ACL_MEMCPY_DEVICE_TO_DEVICE, lane.stream));
      }
      const double start = now_ns();
      lane.open();
      CHECK(aclrtSynchronizeStream(lane.stream));
      const double bytes = static_cast<double>(sharing.width * sharing.rows) * sharing.copies;
      best = std::max(best, bytes / (now_ns() - start) * 1000);
    }
    std::printf("%.0f\n", best);
  }
}

void bench_sharing(const std::string& self, int rounds) {
  std::vector<Samples> with(std::size(kSharings)), without(std::size(kSharings));
  for (int round = 0; round < rounds; ++round) {
    for (const bool has_engines : {true, false}) {
      const std::string setting = has_engines ? "" : "TORCH_LLM_DATADIST_EMULATE_COPY_ENGINES=0 ";
      FILE* const child = popen((setting + self + " " + kOfChild).c_str(), "r");
      if (child == nullptr) std::exit(1);
      for (Samples& samples : has_engines ? with : without) {
        double found = 0;
        if (std::fscanf(child, "%lf", &found) != 1) std::exit(1);
        samples.add(found);
      }
      pclose(child);
    }
  }
  std::printf("\n%-24s %-22s %-22s %s\n", "MB/s, copies in a row", "with copy engines", "without", "ratio");
  for (size_t i = 0; i < std::size(kSharings); ++i) {
    std::printf("%-24s %-22s %-22s %5.2f\n", kSharings[i].name, with[i].text().c_str(),
                without[i].text().c_str(), with[i].median() / without[i].median());
  }
}

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  const std::string key = "model name";
  for (std::string line; std::getline(info, line);) {
    if (line.compare(0, key.size(), key) == 0) return line.substr(line.find(": ") + 2);
  }
  return "unnamed CPU";  // as on Arm
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], kOfChild) == 0) {
    CHECK(aclInit(nullptr));
    CHECK(aclrtSetDevice(0));
    copies_of_this_process();
    return 0;
  }
  const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 15;
  utsname machine{};
  uname(&machine);
  double load[1] = {};
  getloadavg(load, 1);
  std::printf("emulated device memory on a CPU; no figure of a real device\n");
  std::printf("%s (%s), kernel %s, %u cores, load %.1f before the start, %d rounds\n\n", cpu_model().c_str(),
              machine.machine, machine.release, std::thread::hardware_concurrency(), load[0], rounds);

  CHECK(aclInit(nullptr));
  CHECK(aclrtSetDevice(0));
  std::printf("%-20s %s  %-22s %-22s %-22s %-22s\n", "ns per task", "n", "submit", "run", "both", "cpu");
  for (const size_t streams : {size_t{1}, size_t{4}}) {
    std::vector<Lane> lanes(streams);
    for (const Kind& kind : kKinds) bench_tasks(kind, lanes, rounds);
  }
  std::printf("\n%-12s  %-10s  %-26s %-26s %s\n", "MB/s, block", "slab", "device to device",
              "memcpy, one thread", "ratio");
  constexpr size_t kSlab = size_t{64} << 20;
  for (const size_t kib : {16, 64, 256, 1024, 4096, 16384, 65536}) bench_copies(kib << 10, kSlab, rounds);
  for (const size_t kib : {64, 1024}) bench_copies(kib << 10, kib << 10, rounds);
  bench_sharing(argv[0], std::min(rounds, 5));
  CHECK(aclrtResetDevice(0));
  CHECK(aclFinalize());
}
