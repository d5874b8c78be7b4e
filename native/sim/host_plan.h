// What the simulated devices need to know about plan mode. See host_plan.cpp.
#pragma once

namespace pgg {

// true while `p` lies in a host buffer of plan mode: zero bytes that nobody has touched, so don't fill them
bool plan_owns_host_address(const void * p);

} // namespace pgg
