// Buffers of the differentiable rasterizer, kept for the next image: fresh memory costs a page fault per 4 kB.
#ifndef STREAMSPLAT_RASTER_GRAD_SHELF_H_
#define STREAMSPLAT_RASTER_GRAD_SHELF_H_

#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

namespace streamsplat {

// Objects of each kind that are kept; the buffers of 73,728 Gaussians are 6 MB an image.
constexpr std::size_t kShelfSize = 32;

// Finished objects kept for reuse. Never destroyed: a state may outlive static objects at exit.
template <class T>
class Shelf {
 public:
  static T take() {
    Shelf& shelf = instance();
    std::lock_guard<std::mutex> hold(shelf.lock_);
    if (shelf.items_.empty()) return T();
    T item = std::move(shelf.items_.back());
    shelf.items_.pop_back();
    return item;
  }
  static void give(T item) noexcept {
    Shelf& shelf = instance();
    std::lock_guard<std::mutex> hold(shelf.lock_);
    if (shelf.items_.size() < kShelfSize) shelf.items_.push_back(std::move(item));
  }

 private:
  Shelf() { items_.reserve(kShelfSize); }  // so that giving back, often in a destructor, cannot fail
  static Shelf& instance() {
    static Shelf* const shelf = new Shelf;
    return *shelf;
  }
  std::mutex lock_;
  std::vector<T> items_;
};

// Borrows from the shelf for a scope.
template <class T>
struct Loan {
  Loan() : item(Shelf<T>::take()) {}
  ~Loan() { Shelf<T>::give(std::move(item)); }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;
  T item;
};

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_GRAD_SHELF_H_
