// Takes the place of ggml-vulkan.cpp in ggml-vulkan, and includes it so that it does not bring Mesa's lavapipe down.
//
// All of ggml's descriptor sets have twelve bindings, of which a dispatch writes those that its shader has. The others
// keep what an earlier dispatch put there, which may be a buffer that is gone: where a larger one took the place of a
// scratch buffer, say. Vulkan allows that. But lavapipe (22.3, Debian 12) counts references to whatever a set names, and
// so writes into freed memory (docs/vulkan.md). For its devices, a write fills all bindings: the rest with the last of those
// that the shader has. A set is used only after a write, or unchanged while no buffer was destroyed since: so
// none names what is gone.

#include "ggml-vulkan-common.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <vector>

static PFN_vkCreateDevice         vulkan_create_device;
static PFN_vkUpdateDescriptorSets vulkan_update_descriptor_sets;

static std::shared_mutex  lavapipes_mutex;
static std::set<VkDevice> lavapipes;
static std::atomic<bool>  any_lavapipe{ false };

static VKAPI_ATTR VkResult VKAPI_CALL create_device(
        VkPhysicalDevice physical, const VkDeviceCreateInfo * info, const VkAllocationCallbacks * allocator, VkDevice * device) {
    const VkResult result = vulkan_create_device(physical, info, allocator, device);
    if (result != VK_SUCCESS) {
        return result;
    }
    VkPhysicalDeviceDriverProperties driver{};
    driver.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES;
    VkPhysicalDeviceProperties2 properties{};
    properties.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
    properties.pNext = &driver;
    ggml_vk_default_dispatcher().vkGetPhysicalDeviceProperties2(physical, &properties);

    std::unique_lock<std::shared_mutex> l(lavapipes_mutex);
    if (driver.driverID == VK_DRIVER_ID_MESA_LLVMPIPE) {
        lavapipes.insert(*device);
        any_lavapipe = true;
    } else {
        lavapipes.erase(*device); // the address of one that was destroyed
    }
    return result;
}

static bool is_lavapipe(VkDevice device) {
    if (!any_lavapipe) {
        return false;
    }
    std::shared_lock<std::shared_mutex> l(lavapipes_mutex);
    return lavapipes.count(device) > 0;
}

static VKAPI_ATTR void VKAPI_CALL update_descriptor_sets(
        VkDevice device, uint32_t n_writes, const VkWriteDescriptorSet * writes, uint32_t n_copies, const VkCopyDescriptorSet * copies) {
    if (!is_lavapipe(device)) {
        vulkan_update_descriptor_sets(device, n_writes, writes, n_copies, copies);
        return;
    }
    std::vector<VkWriteDescriptorSet> filled(writes, writes + n_writes);
    std::vector<std::vector<VkDescriptorBufferInfo>> buffers(n_writes);
    for (uint32_t i = 0; i < n_writes; i++) {
        VkWriteDescriptorSet & w = filled[i];
        if (w.descriptorType == VK_DESCRIPTOR_TYPE_STORAGE_BUFFER && w.dstBinding == 0 && w.descriptorCount > 0) {
            buffers[i].assign(w.pBufferInfo, w.pBufferInfo + w.descriptorCount);
            buffers[i].resize(std::max<size_t>(MAX_PARAMETER_COUNT, w.descriptorCount), buffers[i].back());
            w.pBufferInfo     = buffers[i].data();
            w.descriptorCount = (uint32_t) buffers[i].size();
        }
    }
    vulkan_update_descriptor_sets(device, n_writes, filled.data(), n_copies, copies);
}

// what upstream calls when it has an instance
struct dispatcher_with_hooks {
    template <typename... Arguments> void init(const Arguments &... arguments) {
        DispatchLoaderDynamic & vulkan = ggml_vk_default_dispatcher();
        vulkan.init(arguments...);
        vulkan_create_device          = vulkan.vkCreateDevice;
        vulkan_update_descriptor_sets = vulkan.vkUpdateDescriptorSets;
        vulkan.vkCreateDevice         = create_device;
        vulkan.vkUpdateDescriptorSets = update_descriptor_sets;
    }
};

#undef VULKAN_HPP_DEFAULT_DISPATCHER
#define VULKAN_HPP_DEFAULT_DISPATCHER dispatcher_with_hooks()

#include "ggml-vulkan.cpp"
