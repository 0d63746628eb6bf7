-- A write waits until its backend is ready: 15 s at most for a writer that the agent has to name first, and for one that
-- takes no new work, since it is about to end or to move, as long as that may take.
local STEP = 50

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec // 1000
end

local function hold(name, backend, longest)
  core.register_action(name, {"http-req"}, function(txn)
    local ends = milliseconds() + longest
    while txn.f:nbsrv(backend) == 0 and milliseconds() < ends do
      core.msleep(STEP)
    end
  end)
end

hold("hold", "writer", 15000)
hold("hold_new", "newwork", 60000)
